# docker build -t rl_warmup . && docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" rl_warmup demo
# Without CUDA, which is several GB smaller: --build-arg TORCH_INDEX=URL, the index where torch has builds for CPUs.
FROM python:3.11-slim AS build
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
ARG TORCH_INDEX=
RUN pip install --no-cache-dir --constraint /constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
 && pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[metrics,peft,sweeps]"
RUN mkdir /data && chmod 1777 /data
# in the volume, so that models of a hub are fetched once
ENV HOME=/tmp HF_HOME=/data/.cache/huggingface OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKDIR /data
ENTRYPOINT ["rl-warmup"]
CMD ["--help"]
