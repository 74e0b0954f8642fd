# On a CPU: docker build -t rl_warmup . && docker run --rm --user "$(id -u)" --volume "$PWD:/work" rl_warmup demo
FROM python:3.11-slim AS build
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
# where torch builds without CUDA are: --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=
RUN pip install --no-cache-dir --constraint /constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
 && pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[metrics,peft,sweeps]"
ENV HOME=/tmp OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKDIR /work
ENTRYPOINT ["rl-warmup"]
CMD ["--help"]
