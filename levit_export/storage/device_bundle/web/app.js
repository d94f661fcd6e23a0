// The page: what was chosen goes through decoder, recipe and model, and is shown.

import { Bundle } from "./bundle.js";
import { Camera, hasCamera } from "./camera.js";
import { answers, check, rows } from "./checks.js";
import { decode } from "./decode.js";
import { MODULES, Model, THREADS, breathe, ranked, withoutGpu } from "./model.js";
import { feed, resizeAndCrop } from "./recipe.js";
import { measure } from "./results.js";

const SHOWN = 5;
const MOST_EXAMPLES = 16;
const part = (id) => document.getElementById(id);
const made = (tag, fields = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

const page = {
  bundle: null,
  model: null,
  artifact: null,
  golden: null,
  times: null,
  row: null, // what the model was fed last
  address: null,
  next: null,
  lack: "", // why there is no GPU, where the page could use one
  cards: new Map(), // of golden rows
};
const camera = new Camera(part("video"));

/** `busy`, `ready` or `failed`. Nothing is disabled while busy: that would take the focus away. */
function enter(state, text) {
  document.documentElement.dataset.state = state;
  part("status").textContent = text;
  for (const element of document.querySelectorAll("[data-control]")) element.disabled = page.model === null;
}

/** One task at a time; of those asked for meanwhile the last is next. */
async function task(text, work) {
  page.next = { text, work };
  if (document.documentElement.dataset.state === "busy") return;
  while (page.next) {
    const current = page.next;
    page.next = null;
    enter("busy", current.text);
    await breathe();
    try {
      enter("ready", await current.work());
    } catch (error) {
      part("answer").hidden = true; // it was another picture's
      enter("failed", error.message || String(error));
    }
  }
}

// Start

function describe({ manifest, described, input, artifacts }) {
  const { model } = manifest;
  document.title = `${model.name} in the browser`;
  part("name").textContent = model.name;
  part("recipe").textContent = `What happens to a picture first: ${described.preprocessing.words}.`;
  if (input.dtype === "uint8") part("recipe").textContent += " The model normalises by itself.";
  const warning = {
    fail: "This export failed its check. Do not ship it.",
    inconclusive: "The check of this export decided nothing: it is not known to be right.",
    "not-run": "A check of this export was not run: it is not known to be right.",
  }[manifest.verdict];
  part("warning").hidden = !warning;
  part("warning").textContent = warning ?? "";
  part("variant-row").hidden = part("files-box").hidden = artifacts.length < 2;
  part("variant").append(...artifacts.map((each) => new Option(each.path, each.path)));
  part("camera-row").hidden = !hasCamera;
}

function offerExamples({ described }) {
  const names = Object.keys(described.images).filter((name) => described.images[name].row !== null);
  // Photographs first: they show more than black and white squares.
  names.sort((one, other) => other.startsWith("real-") - one.startsWith("real-"));
  for (const name of names.slice(0, MOST_EXAMPLES)) {
    const source = `../golden/images/${encodeURIComponent(name)}.png`;
    const picture = made("img", { src: source, alt: name, loading: "lazy" });
    const button = made("button", { type: "button", title: name, disabled: true }, picture);
    button.dataset.control = "";
    button.addEventListener("click", () => task("Reading…", () => classifyExample(name)));
    const told = made("span", { className: "told" });
    page.cards.set(described.images[name].row, told);
    part("examples").append(made("li", {}, button, told));
  }
  part("examples-box").hidden = !names.length;
}

/** PyTorch's answer to a golden picture beside the one that was given here. */
function showKnown(row, expected, given) {
  const card = page.cards.get(row);
  if (!card) return;
  const best = [expected, given].map((outputs) => ranked(outputs, page.bundle.labels.length)[0]);
  const [wanted, found] = best.map(({ place, share }) => `${page.bundle.labels[place]}, ${percent(share)}`);
  const isSame = best[0].place === best[1].place;
  card.replaceChildren(
    made("span", { textContent: `PyTorch: ${wanted}` }),
    made("span", { textContent: `here: ${found}`, className: isSame ? "" : "fail" }),
  );
}

/** A file of the model on a unit; on the CPU where the GPU cannot, or answers otherwise. */
async function load(artifact, unit) {
  page.golden ??= await rows(page.bundle);
  let opened = null;
  let why = "";
  if (unit === "webgpu") {
    try {
      opened = await open(artifact, unit);
      const { verdict, detail } = await answers(page.bundle, opened.model, artifact);
      if (verdict !== "pass") throw new Error(detail);
    } catch (error) {
      await opened?.model.close();
      why = error.message || String(error);
      opened = null;
    }
  }
  opened ??= await open(artifact, "wasm");
  await page.model?.close();
  Object.assign(page, { artifact, ...opened });
  part("unit").value = page.model.unit;
  const said = why ? `The GPU was tried and left, and the CPU took over: ${why}` : page.lack;
  part("fallback").hidden = !said;
  part("fallback").textContent = said;
  const { model } = page.bundle.manifest;
  const figures = `${model.labels.length} classes, ${(model.parameters / 1e6).toFixed(2)} M parameters`;
  part("about").textContent = `${figures}, on ${page.model.runtime} (${page.model.place})`;
}

async function open(artifact, unit) {
  const buffer = await page.bundle.file(artifact.path);
  part("status").textContent = "Starting the runtime…";
  await breathe();
  const start = performance.now();
  const model = await Model.open(buffer, page.bundle.manifest, unit);
  const opened = performance.now();
  await model.run([page.golden[0]]);
  const answered = performance.now();
  return { model, times: { coldMs: answered - start, firstMs: answered - opened } };
}

/** The unit to begin with. A GPU is offered where the bundle has its runtime and the browser one. */
async function firstUnit() {
  if (!(`web/onnxruntime/${MODULES.webgpu}` in page.bundle.described.files)) return "wasm";
  const lack = await withoutGpu();
  part("unit-row").hidden = Boolean(lack);
  page.lack = lack && `It runs on the CPU: ${lack}.`;
  return lack ? "wasm" : "webgpu";
}

// Classify

async function classifyExample(name) {
  const file = await page.bundle.file(`golden/images/${name}.png`);
  // A golden image of the model's size is not resized again.
  return classify(new Blob([file], { type: "image/png" }), page.bundle.described.images[name].resized);
}

async function classify(blob, isResized = true) {
  const { bundle, model } = page;
  const before = performance.now();
  const image = await decode(blob);
  const decoded = performance.now();
  const cropped = isResized ? resizeAndCrop(bundle.recipe, image) : image;
  const row = feed(bundle.recipe, bundle.input, cropped);
  const prepared = performance.now();
  const found = ranked(await model.run([row]), bundle.labels.length);
  page.row = row;
  showPictures(blob, cropped);
  part("shown").classList.toggle("small", image.width < bundle.recipe.crop[1]);
  showClasses(found.slice(0, SHOWN));
  part("remark").hidden = !image.transparent;
  part("remark").textContent = image.transparent
    ? "This picture has transparent pixels; browsers change the colour beneath them, so the answer may differ from PyTorch's."
    : "";
  part("latency").textContent = "Measuring…";
  part("answer").hidden = false;
  part("answer").scrollIntoView({ block: "nearest" });
  const times = await model.time(row);
  part("latency").textContent = latency(times, decoded - before, prepared - decoded);
  const [best] = found;
  return `Answer: ${bundle.labels[best.place]}, ${percent(best.share)}.`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (time) => `${time.toFixed(time < 10 ? 2 : 0)} ms`;
const median = (times) => (times[(times.length - 1) >> 1] + times[times.length >> 1]) / 2;

function latency(times, decoding, preparing) {
  const span = `${milliseconds(times[0])} to ${milliseconds(times.at(-1))}`;
  return (
    `Model: ${milliseconds(median(times))} (median of ${times.length} runs, ${span}; batch ${page.model.batch}, ` +
    `${page.model.place}). Decoding ${milliseconds(decoding)}, preprocessing ${milliseconds(preparing)}.`
  );
}

function showPictures(blob, cropped) {
  if (page.address) URL.revokeObjectURL(page.address);
  page.address = URL.createObjectURL(blob);
  part("shown").src = page.address;
  const { width, height, data } = cropped;
  const pixels = new ImageData(width, height);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    pixels.data.set([data[from], data[from + 1], data[from + 2], 255], to);
  }
  Object.assign(part("seen"), { width, height });
  part("seen").getContext("2d").putImageData(pixels, 0, 0);
}

function showClasses(found) {
  const items = found.map(({ place, share }) => {
    const bar = made("span", { className: "bar" });
    bar.style.width = `${100 * share}%`;
    const label = made("span", { className: "label", textContent: page.bundle.labels[place] });
    const item = made("li", {}, bar, label);
    item.append(made("span", { className: "share", textContent: percent(share) }));
    Object.assign(item.dataset, { place, share });
    return item;
  });
  part("classes").replaceChildren(...items);
}

// Check

async function verify() {
  part("checks").replaceChildren();
  part("verdict").className = "quiet";
  part("verdict").textContent = "Checking…";
  const found = [];
  for await (const line of check(page.bundle, page.model, page.artifact, showKnown)) {
    found.push(line);
    const text = made("span", {}, line.name, made("small", { textContent: line.detail }));
    const mark = made("span", { className: `mark ${line.verdict}`, textContent: line.verdict });
    const item = made("li", {}, mark, text);
    item.dataset.verdict = line.verdict;
    part("checks").append(item);
    await breathe();
  }
  return conclude(found);
}

/** A check that was not run is no pass. */
function conclude(found) {
  const count = (verdict) => found.filter((line) => line.verdict === verdict).length;
  const [passed, failed] = [count("pass"), count("fail")];
  const verdict = failed ? "fail" : passed === found.length && passed ? "pass" : "not run";
  const text = {
    pass: `Yes. All ${passed} checks pass: this browser gives PyTorch's answers within the tolerance.`,
    fail: `No. ${failed} of ${found.length} checks failed.`,
    "not run": `Not known for certain. ${passed} of ${found.length} checks pass, the others were not run.`,
  }[verdict];
  part("verdict").className = verdict === "not run" ? "quiet" : verdict;
  part("verdict").textContent = text;
  return verdict === "fail" ? `Is it the same model here? ${text}` : "Ready for a picture.";
}

// All files

/** A row for each ONNX file: what it answers to one picture, how fast, and whether it is right. */
async function compareFiles() {
  const { bundle } = page;
  const [first = 0] = page.cards.keys();
  const row = page.row ?? page.golden[first];
  const cell = (text, isNumber = true) => made("td", { textContent: text, className: isNumber ? "number" : "" });
  part("files").replaceChildren();
  part("compared").hidden = false;
  for (const artifact of bundle.artifacts) {
    const { model } = await open(artifact, page.model.unit);
    try {
      const [best] = ranked(await model.run([row]), bundle.labels.length);
      const times = await model.time(row);
      const { verdict, detail } = await answers(bundle, model, artifact);
      const size = `${(bundle.described.files[artifact.path].bytes / 1e6).toFixed(2)} MB`;
      const judged = made("td", {}, made("span", { textContent: verdict, className: verdict }), ` ${detail.split(" (")[0]}`);
      part("files").append(
        made(
          "tr",
          {},
          made("th", { scope: "row", textContent: artifact.path }),
          cell(bundle.labels[best.place], false),
          cell(percent(best.share)),
          cell(milliseconds(median(times))),
          cell(size),
          judged,
        ),
      );
    } finally {
      await model.close();
    }
    await breathe();
  }
  return "The files are compared.";
}

// Results

/** A file for `levit-export check BUNDLE --results FILE`. */
async function save() {
  const { bundle, model, artifact, golden, times } = page;
  const sustainS = Number(part("sustain").value) || 0;
  const { runtime, unit } = model;
  const threads = unit === "webgpu" ? 0 : THREADS;
  const text = await measure({ bundle, model, artifact, golden, runtime, unit, threads, sustainS, ...times });
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  made("a", { href: address, download: `${bundle.manifest.model.name}-results.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  return "The results are saved.";
}

// Events

function listen() {
  part("save").addEventListener("click", () => task("Measuring…", save));
  part("compare").addEventListener("click", () => task("Comparing…", compareFiles));
  part("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) task("Reading…", () => classify(file));
    event.target.value = ""; // so that the same file can be chosen again
  });
  part("again").addEventListener("click", () => task("Checking…", verify));
  for (const name of ["variant", "unit"]) part(name).addEventListener("change", () => task("Loading the model…", reload));
  listenToCamera();
  listenForDrops();
}

async function reload() {
  await load(page.bundle.artifacts.find((each) => each.path === part("variant").value), part("unit").value);
  part("answer").hidden = true;
  return verify();
}

function listenToCamera() {
  const show = (isOpen) => {
    part("viewfinder").hidden = !isOpen;
    part("camera-row").hidden = isOpen;
  };
  part("camera").addEventListener("click", () =>
    task("Waiting for the camera…", async () => {
      await camera.open();
      show(true);
      part("take").focus();
      return "The camera is on.";
    }),
  );
  const close = () => {
    camera.close();
    show(false);
    part("camera").focus();
  };
  part("take").addEventListener("click", () =>
    task("Reading…", async () => {
      const blob = await camera.picture();
      close();
      return classify(blob);
    }),
  );
  part("close").addEventListener("click", close);
}

/** Anywhere: a drop beside the field would leave the page for the picture. */
function listenForDrops() {
  const over = (isOver) => part("drop").classList.toggle("over", isOver);
  const take = (event, given) => {
    event.preventDefault();
    const file = [...given.files].find((each) => each.type.startsWith("image/"));
    if (!page.model) return;
    task("Reading…", async () => {
      if (!file) throw new Error("That is not an image file.");
      return classify(file);
    });
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  addEventListener("drop", (event) => {
    over(false);
    take(event, event.dataTransfer);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event, event.clipboardData);
  });
}

async function start() {
  page.bundle = await Bundle.open();
  describe(page.bundle);
  offerExamples(page.bundle);
  await load(page.bundle.artifacts[0], await firstUnit());
  part("status").textContent = "Checking whether it is the same model here…";
  return verify();
}

part("not-started").hidden = true;
part("app").hidden = false;
listen();
task("Loading the model…", start);
