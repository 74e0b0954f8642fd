// The browser over predictions and sampled groups: search, filter, sort, pages. Only one page is ever in the document.
// Texts of runs are hostile until shown otherwise: they enter the document as text nodes, never as markup.
"use strict";
(() => {
  const home = document.getElementById("browser");
  if (!home) return;
  const { rows, files, groups } = data.examples;
  const NAMES = data.names;
  const named = (control, file) => (!control && data.sections[file.section].sft.includes(file.arm) ? "no warmup (SFT)" : NAMES[control] ?? control);
  const FINISH = { separator: "", length: "cut at the length limit", proposal: "", empty: "" };

  // flat records: text is lower-cased once, on the first search
  const items = [];
  files.forEach((file) => file.items.forEach(([row, warmup, finish, prediction, right, likeness]) => {
    items.push({ file, section: file.section, arm: file.arm, seed: file.seed, control: file.control, row, warmup, finish, prediction, right, likeness });
  }));
  const sampled = groups.map(([section, arm, seed, step, row, warmups]) => ({ section, arm, seed, step, row, warmups,
    spread: warmups.length ? Math.max(...warmups.map((w) => w[3])) - Math.min(...warmups.map((w) => w[3])) : 0,
    top: warmups.length ? Math.max(...warmups.map((w) => w[4])) : 0 }));
  const byRow = new Map();
  for (const item of items) byRow.has(item.row) ? byRow.get(item.row).push(item) : byRow.set(item.row, [item]);
  const texts = (item) => (item.text ??= [rows[item.row][1], rows[item.row][2], rows[item.row][3],
    ...(item.warmups ? item.warmups.map((w) => w[0]) : [item.warmup ?? "", item.prediction])].join("\n").toLowerCase());

  const view = { tab: items.length ? "predictions" : "groups", page: 0, size: 25, sort: "", down: false, found: [] };
  const SORTS = {
    predictions: { "": "file order", prompt: "prompt", warmup: "warmup", prediction: "prediction", target: "target", likeness: "likeness", right: "right or wrong", arm: "arm", length: "length of warmup" },
    groups: { "": "file order", step: "step", spread: "spread of log P(y|x,c)", top: "largest posterior weight", prompt: "prompt", arm: "arm" },
  };
  const KEYS = {
    prompt: (item) => rows[item.row][2], target: (item) => rows[item.row][3], warmup: (item) => item.warmup ?? "",
    prediction: (item) => item.prediction, likeness: (item) => item.likeness, right: (item) => item.right,
    arm: (item) => `${item.arm} ${item.seed}`, length: (item) => (item.warmup ?? "").length,
    step: (item) => item.step, spread: (item) => item.spread, top: (item) => item.top,
  };

  const field = (label, control, kind = "") => make("div", { class: kind }, make("label", { for: control.id }, label), control);
  const select = (id, options) => make("select", { id, onchange: () => refresh() }, ...options.map(([value, name]) => make("option", { value }, name)));
  const unique = (values) => [...new Set(values)];
  const search = make("input", { id: "b-search", type: "search", placeholder: "words in prompt, warmup, prediction, target", autocomplete: "off" });
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  const choose = {
    section: select("b-section", [["", "all"], ...data.sections.map((section, index) => [index, section.title])]),
    arm: select("b-arm", [["", "all"], ...unique([...items, ...sampled].map((item) => item.arm)).map((arm) => [arm, arm])]),
    seed: select("b-seed", [["", "all"], ...unique([...items, ...sampled].map((item) => String(item.seed))).sort().map((seed) => [seed, seed])]),
    control: select("b-control", [["*", "all"], ...unique(items.map((item) => item.control)).map((control) => [control, control ? NAMES[control] ?? control : "own warmup or none"])]),
    right: select("b-right", [["", "all"], ["1", "right"], ["0", "wrong"]]),
  };
  const sortBy = make("select", { id: "b-sort", onchange: () => order(sortBy.value) });
  const direction = make("button", { type: "button", id: "b-direction", onclick: () => { view.down = !view.down; refresh(); } });
  const size = make("select", { id: "b-size", onchange: () => { view.size = +size.value; refresh(); } }, ...[25, 50, 100].map((n) => make("option", { value: n }, String(n))));
  const onlyPredictions = [field("Warmup", choose.control), field("Right or wrong", choose.right)];
  const tools = make("div", { class: "tools", role: "search" }, field("Search", search, "search"),
    data.sections.length > 1 ? field("Experiment", choose.section) : null, field("Arm", choose.arm), field("Seed", choose.seed),
    ...onlyPredictions, field("Sort by", sortBy), field("Direction", direction), field("Per page", size));
  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "what to browse" },
    ...[["predictions", `Predictions (${items.length.toLocaleString("en")})`], ["groups", `Warmup groups while training (${sampled.length.toLocaleString("en")})`]]
      .map(([tab, name]) => make("button", { type: "button", role: "tab", id: `b-tab-${tab}`, "aria-controls": "b-list", onclick: () => open(tab) }, name)));
  tabs.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { const next = view.tab === "groups" ? "predictions" : "groups"; open(next); document.getElementById(`b-tab-${next}`).focus(); }
  });
  const status = make("span", { role: "status", id: "b-status" });
  const list = make("div", { id: "b-list", role: "tabpanel" });
  const pagers = [pager(status), pager(null)];
  home.append(tabs, tools, pagers[0].box, list, pagers[1].box);

  function pager(text) {
    const go = (step) => () => { view.page += step; paint(); if (!text) home.scrollIntoView(); };
    const back = make("button", { type: "button", onclick: go(-1) }, "Previous"), on = make("button", { type: "button", onclick: go(1) }, "Next");
    const place = make("span");
    return { box: make("div", { class: "pager" }, back, place, on, text), back, on, place };
  }
  function open(tab) {
    view.tab = tab;
    view.sort = tab === "groups" ? "spread" : "";  // groups whose warmups differ in worth say most
    view.down = tab === "groups";
    refresh();
  }
  function order(key) {
    view.down = view.sort === key ? !view.down : ["likeness", "step", "spread", "top", "length"].includes(key) && key !== "likeness";
    view.sort = key;
    refresh();
  }

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { section, arm, seed, control, right } = Object.fromEntries(Object.entries(choose).map(([name, node]) => [name, node.value]));
    const predictions = view.tab === "predictions";
    view.found = (predictions ? items : sampled).filter((item) =>
      (section === "" || item.section === +section) && (arm === "" || item.arm === arm) && (seed === "" || String(item.seed) === seed) &&
      (!predictions || ((control === "*" || item.control === control) && (right === "" || item.right === +right))) &&
      words.every((word) => texts(item).includes(word)));
    if (view.sort) {
      const key = KEYS[view.sort], turn = view.down ? -1 : 1;
      view.found = view.found.map((item) => [key(item), item]).sort(([a], [b]) => turn * (a < b ? -1 : a > b ? 1 : 0)).map(([, item]) => item);
    }
    view.page = 0;
    onlyPredictions.forEach((node) => { node.hidden = !predictions; });
    sortBy.replaceChildren(...Object.entries(SORTS[view.tab]).map(([value, name]) => make("option", { value, selected: value === view.sort ? "" : null }, name)));
    direction.textContent = view.down ? "highest first" : "lowest first";
    direction.disabled = !view.sort;
    for (const tab of tabs.children) {
      const on = tab.id === `b-tab-${view.tab}`;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      if (on) list.setAttribute("aria-labelledby", tab.id);
    }
    paint();
  }

  function paint() {
    const pages = Math.max(1, Math.ceil(view.found.length / view.size));
    view.page = Math.min(Math.max(view.page, 0), pages - 1);
    for (const { back, on, place } of pagers) {
      place.textContent = `page ${view.page + 1} of ${pages.toLocaleString("en")}`;
      back.disabled = view.page === 0;
      on.disabled = view.page === pages - 1;
    }
    const count = view.found.length.toLocaleString("en");
    const hits = view.tab === "predictions" ? `${count} predictions, ${view.found.reduce((sum, item) => sum + item.right, 0).toLocaleString("en")} right` : `${count} groups`;
    status.textContent = view.found.length ? hits : "Nothing matches. Clear the search or a filter.";
    const part = view.found.slice(view.page * view.size, (view.page + 1) * view.size);
    list.replaceChildren(part.length ? (view.tab === "predictions" ? table(part) : make("div", {}, scale(), ...part.map(group))) : "");
  }

  function body(text, other) {
    const long = text.length > 320 ? " long" : "";
    const box = make("div", { class: `body${long}`, tabindex: long ? "0" : null });
    if (other === undefined) box.textContent = text;
    else box.append(...difference(text, other));
    return box;
  }

  // words of a prediction that are not in the target, in order, are marked
  function difference(text, target) {
    const one = text.split(/(\s+)/), other = target.split(/\s+/), words = one.filter((_, i) => i % 2 === 0);
    if (words.length * other.length > 40000) return [text];
    const best = Array.from({ length: words.length + 1 }, () => new Int32Array(other.length + 1));
    for (let i = words.length - 1; i >= 0; i--) for (let j = other.length - 1; j >= 0; j--)
      best[i][j] = words[i] === other[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const out = [];
    for (let i = 0, j = 0; i < words.length; i++) {
      while (j < other.length && words[i] !== other[j] && best[i][j + 1] > best[i + 1][j]) j++;
      const same = j < other.length && words[i] === other[j] && best[i][j] === best[i + 1][j + 1] + 1;
      out.push(same || !words[i] ? words[i] : make("mark", {}, words[i]), one[2 * i + 1] ?? "");
      if (same) j++;
    }
    return out;
  }

  const COLUMNS = [["prompt", "prompt", 22], ["warmup", "warmup", 18], ["prediction", "prediction", 20], ["target", "target", 20], ["right", "right?", 8], ["arm", "arm", 12]];
  function table(part) {
    const head = COLUMNS.map(([key, name, share]) => {
      const sorted = view.sort === key ? (view.down ? "descending" : "ascending") : null;
      const arrow = sorted ? (view.down ? " ↓" : " ↑") : "";
      return make("th", { scope: "col", width: `${share}%`, "aria-sort": sorted }, make("button", { type: "button", onclick: () => order(key) }, name + arrow));
    });
    return make("table", { class: "rows cards" }, make("caption", {}, "Marked words of a prediction are not in the target at that place."),
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...part.map(record)));
  }

  function cells(item) {
    const verdict = make("span", { class: item.right ? "right" : "wrong" }, item.right ? "✓ right" : "✗ wrong");
    return { warmup: written(item), prediction: body(item.prediction, rows[item.row][3]),
      right: make("div", {}, verdict, make("div", { class: "soft small" }, `${item.likeness} % alike`)) };
  }
  function written(item) {
    if (item.warmup === null || item.warmup === undefined || (item.warmup === "" && data.sections[item.section].sft.includes(item.arm))) return null;
    const box = make("div", {});
    box.append(item.warmup === "" ? make("span", { class: "soft" }, "(empty)") : body(item.warmup));
    const how = FINISH[item.finish] ?? item.finish;
    if (how) box.append(make("div", { class: "soft small" }, how));
    return box;
  }
  function who(item) {
    const index = data.sections[item.section].arms.indexOf(item.arm);
    return make("div", { class: "who" }, make("span", { class: `chip c${index % 8}`, "aria-hidden": "true" }), `${item.arm}, seed ${item.seed}`,
      make("div", { class: "soft small" }, named(item.control, item.file)));
  }
  const cell = (label, node) => (node ? make("td", { "data-label": label }, node) : make("td"));

  function record(item) {
    const shown = cells(item), others = byRow.get(item.row);
    const row = make("tr", {});
    const more = others.length < 2 ? null : make("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => unfold(row, item, more) }, `all ${others.length} answers`);
    row.append(cell("prompt", make("div", {}, body(rows[item.row][2]), more)), cell("warmup", shown.warmup), cell("prediction", shown.prediction),
      cell("target", body(rows[item.row][3])), cell("right?", shown.right), cell("arm", who(item)));
    return row;
  }
  function unfold(row, item, button) {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) { row.nextSibling.remove(); return; }
    const head = ["arm", "warmup", "prediction", "right?"].map((name) => make("th", { scope: "col" }, name));
    const lines = byRow.get(item.row).slice(0, 200).map((other) => { const c = cells(other); return make("tr", {}, cell("arm", who(other)), cell("warmup", c.warmup), cell("prediction", c.prediction), cell("right?", c.right)); });
    const inner = make("table", { class: "rows cards" }, make("caption", {}, `Everything that answered ${rows[item.row][1]}; target: ${rows[item.row][3]}`),
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
    row.after(make("tr", { class: "inner" }, make("td", { colspan: COLUMNS.length }, inner)));
  }

  // colours are on one scale per experiment, so that they can be compared between steps and arms
  const range = (section, index) => {
    const values = sampled.filter((one) => one.section === section).flatMap((one) => one.warmups.map((w) => w[index])).filter((value) => value !== null).sort((a, b) => a - b);
    return [values[Math.floor(values.length * 0.05)] ?? 0, values[Math.floor(values.length * 0.98)] ?? 1];
  };
  function fixed(value, digits) {
    if (value === null) return "";
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && +text ? "−" : "") + text;
  }
  const ranges = data.sections.map((_, section) => ({ 2: range(section, 2), 3: range(section, 3) }));
  function heat(value, section, index) {
    const [low, high] = ranges[section][index];
    const node = make("td", { class: "heat", "data-label": index === 2 ? "log P(c|x)" : "log P(y|x,c)" }, fixed(value, 2));
    if (value !== null) node.style.setProperty("--share", Math.min(1, Math.max(0, (value - low) / (high - low || 1))));
    return node;
  }
  function scale() {
    const of = (name, index) => {
      const shown = [...new Set(view.found.map((one) => one.section))];
      const ends = shown.length === 1 ? ranges[shown[0]][index].map((end) => fixed(end, 1)) : ["low", "high"];
      return make("span", { class: "scale" }, name, ` ${ends[0]}`, make("i", {}), ends[1]);
    };
    return make("p", { class: "small soft scales" }, of("log P(y|x,c)", 3), of("log P(c|x)", 2),
      make("span", {}, "In nats; the stronger the colour, the likelier, on one scale per experiment. The posterior weight is a warmup's share of the group's credit."));
  }
  function group(one) {
    const [, id, prompt, target] = rows[one.row];
    const lines = one.warmups.map(([warmup, finish, logC, logY, weight]) => {
      const bar = make("td", { class: "weight", "data-label": "posterior" }, make("span", {}, weight === null ? "" : weight.toFixed(2)));
      bar.style.setProperty("--share", weight ?? 0);
      const how = finish === "proposal" ? "proposal, made from the target" : FINISH[finish] ?? finish;
      return make("tr", {}, bar, heat(logY, one.section, 3), heat(logC, one.section, 2), make("td", { class: "text", "data-label": "warmup" },
        make("div", {}, warmup === "" ? make("span", { class: "soft" }, "(empty)") : body(warmup ?? ""), how ? make("span", { class: "soft small" }, how) : null)));
    });
    const head = ["posterior", "log P(y|x,c)", "log P(c|x)", "warmup"].map((name) => make("th", { scope: "col", class: name === "warmup" ? "text" : null }, name));
    return make("article", { class: "group" }, make("p", { class: "soft small" }, `${one.arm}, seed ${one.seed}, step ${one.step}, ${id}`),
      make("p", {}, make("span", { class: "soft small" }, "prompt "), prompt), make("p", {}, make("span", { class: "soft small" }, "target "), target),
      make("table", { class: "cards" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)));
  }

  refresh();
})();
