"use strict";
// The table of problems. What models wrote becomes text nodes and nothing else.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 50;
const KINDS = ["all", "right", "wrong", "no answer", "open thought", "unfinished", "truncated", "failed", "graders differ", "flipped"];
const view = { text: "", kind: "all", run: -1, page: 0, open: new Set() };

function el(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child ?? ""))));
  return made;
}

// Flipped: the chosen run and the baseline score differently; without such a pair, any two runs or samples do.
function flipped(problem) {
  const { means } = problem;
  const known = means.filter((mean) => mean !== null);
  if (view.run >= 0 && data.baseline !== null && view.run !== data.baseline) {
    const pair = [means[view.run], means[data.baseline]];
    return !pair.includes(null) && pair[0] !== pair[1];
  }
  return data.runs.length > 1 ? new Set(known).size > 1 : known.some((mean) => mean > 0 && mean < 1);
}

function matches(problem) {
  if (view.kind === "flipped" && !flipped(problem)) return false;
  const answers = view.run < 0 ? problem.answers.flat() : problem.answers[view.run];
  const shared = !["all", "flipped"].includes(view.kind);
  if (shared && !answers.some((answer) => answer.flags.includes(view.kind))) return false;
  if (view.run >= 0 && !answers.length) return false;
  problem.haystack ??= [problem.id, problem.question, problem.gold]
    .concat(problem.answers.flat().flatMap((answer) => [answer.thought, answer.text, answer.error]))
    .join("\n")
    .toLowerCase();
  return problem.haystack.includes(view.text);
}

function verdict(answers) {
  if (answers.length !== 1) {
    const right = answers.filter((answer) => answer.flags.includes("right")).length;
    return el("span", "", answers.length ? `${right} of ${answers.length} right` : "–");
  }
  const [answer] = answers;
  const [first, ...others] = answer.flags;
  const extracted = answer.scores[data.headline]?.answer ?? "";
  return el("span", first, first === "right" ? "✓ " : "✗ ", extracted, others.length ? ` (${others.join(", ")})` : "");
}

function grades(scores) {
  const rows = Object.entries(scores).map(([name, score]) =>
    el("tr", "", el("td", "", name), el("td", "", score.answer ?? "none"), el("td", "", score.kind),
      el("td", score.correct ? "right" : "wrong", score.correct ? "right" : "wrong")));
  const head = el("tr", "", ...["grader", "extracted", "kind", "verdict"].map((name) => el("th", "", name)));
  return el("table", "grades", head, ...rows);
}

function curve(points) {
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [low, high, last] = [Math.min(...ys), Math.max(...ys), xs.at(-1)];
  const made = (tag, values) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
    return node;
  };
  const way = points.map(([x, y]) => `${4 + (312 * x) / last},${4 + (52 * (high - y)) / (high - low || 1)}`).join(" ");
  const svg = made("svg", { viewBox: "0 0 320 60", class: "trace" });
  svg.append(made("polyline", { points: way, fill: "none", stroke: "#0072b2", "stroke-width": 1.5 }));
  return el("div", "", `log p by move, from ${ys[0]} at move 0 to ${ys.at(-1)} at move ${last}`, svg);
}

function folded(name, text) {
  return el("details", "", el("summary", "", name), el("pre", "", text));
}

function answerBox(answer, run, problem) {
  const { prompt, answer: length, generated, prefilled } = answer.tokens;
  const box = el("div", "answer", el("h3", "", `${data.runs[run]}, sample ${answer.sample}: ${answer.flags.join(", ")}`));
  if (answer.error !== null) box.append(el("pre", "wrong", answer.error));
  if (answer.flags.includes("failed")) return box;
  const facts = `Tokens: ${prompt} of prompt, ${length} of answer, ${generated} generated, ${prefilled} prefilled. ` +
    `Ended by ${answer.ended}, ${answer.seconds} s on ${answer.worker}. Its record: ` +
    `grep '"problem_id": ${problem.id}, "sample_index": ${answer.sample},' ${data.places[run]}`;
  if (answer.thought) box.append(folded("the thought before the answer", answer.thought));
  box.append(el("pre", "", answer.text), grades(answer.scores), el("p", "", facts));
  if (answer.trace.length > 1) box.append(curve(answer.trace));
  const chain = Object.entries(answer.chain).map(([name, value]) => `${name}: ${JSON.stringify(value)}`);
  if (chain.length) box.append(folded("the chain's figures", chain.join("\n")));
  box.append(folded("token ids", answer.ids === null ? `In ${data.places[run]}; too many for this page.` : answer.ids.join(" ")));
  return box;
}

function detail(problem) {
  const box = el("div", "");
  problem.prompts.forEach((prompt, i) => {
    const whose = problem.prompts.length > 1 ? ` of ${data.runs[i]}` : "";
    box.append(el("h3", "", `Prompt${whose}`));
    box.append(prompt === null ? el("p", "", data.missing[i] || "Not known.") : el("pre", "", data.prefix + prompt));
  });
  if (problem.gold !== null) box.append(el("h3", "", "Gold"), el("pre", "", problem.gold));
  problem.answers.forEach((answers, run) => {
    if (view.run < 0 || view.run === run) box.append(...answers.map((answer) => answerBox(answer, run, problem)));
  });
  const cell = el("td", "", box);
  cell.colSpan = 2 + data.runs.length;
  return el("tr", "detail", cell);
}

function render() {
  const matching = data.problems.filter(matches);
  view.page = Math.max(0, Math.min(view.page, Math.ceil(matching.length / PAGE) - 1));
  const [from, to] = [view.page * PAGE, Math.min(matching.length, (view.page + 1) * PAGE)];
  const rows = matching.slice(from, to).flatMap((problem) => {
    const button = el("button", "", problem.id);
    button.setAttribute("aria-expanded", view.open.has(problem.id));
    const text = problem.question ?? problem.answers.flat()[0].text;
    const snippet = text.length > 110 ? `${text.slice(0, 110)}…` : text;
    const cells = problem.answers.map((answers) => el("td", "", verdict(answers)));
    const row = el("tr", "row", el("td", "", button), el("td", "", snippet), ...cells);
    row.id = `problem-${problem.id}`;
    row.onclick = () => {
      if (!view.open.delete(problem.id)) view.open.add(problem.id);
      render();
    };
    return view.open.has(problem.id) ? [row, detail(problem)] : [row];
  });
  byId("rows").replaceChildren(...rows);
  byId("place").textContent = matching.length ? `${from + 1}–${to} of ${matching.length}` : "none";
  byId("back").disabled = view.page === 0;
  byId("on").disabled = to === matching.length;
  return matching;
}

function follow() {
  const id = Number(/^#problem-(\d+)$/.exec(location.hash)?.[1] ?? NaN);
  const at = data.problems.findIndex((problem) => problem.id === id);
  if (at < 0) return;
  Object.assign(view, { text: "", kind: "all", run: -1, page: Math.floor(at / PAGE) });
  [byId("search").value, byId("kind").value, byId("run").value] = ["", "all", -1];
  view.open.add(id);
  render();
  byId(`problem-${id}`).scrollIntoView();
}

const choose = (id, field, value) => byId(id).addEventListener("input", (event) => {
  view[field] = value(event.target.value);
  view.page = 0;
  render();
});
const turn = (step) => () => {
  view.page += step;
  render();
};
byId("head").append(el("tr", "row", ...["problem", "question", ...data.runs].map((name) => el("th", "", name))));
byId("kind").append(...KINDS.map((kind) => new Option(kind, kind)));
byId("run").append(new Option(data.runs.length > 1 ? "all runs" : data.runs[0], -1));
if (data.runs.length > 1) byId("run").append(...data.runs.map((name, i) => new Option(name, i)));
choose("search", "text", (value) => value.toLowerCase());
choose("kind", "kind", String);
choose("run", "run", Number);
byId("back").onclick = turn(-1);
byId("on").onclick = turn(1);
addEventListener("hashchange", follow);
addEventListener("beforeprint", () => document.querySelectorAll("details.run").forEach((run) => (run.open = true)));
render();
follow();
