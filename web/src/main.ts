// The page: what the visitor does, and what the painter answers.

import { lookOf } from "./blend";
import { Camera, Recording } from "./camera";
import type { Look, Model } from "./models";
import { Cancelled, run, type Watch } from "./painter";
import { fit, steady } from "./pixels";
import { shownStroke } from "./stroke";

const MOST_THREADS = 8;
const SHOWN = 1 << 20; // pixels of the photograph on the page, at most
const [LEAST, MOST] = [1 << 16, 1 << 19]; // pixels that are painted to look at
const FRAME_SECONDS = 0.12; // that a frame of the camera may take
const LOOK_SECONDS = 1.2; // that a slider may take to show

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const [frame, divider, error, status] = [$("frame"), $<HTMLInputElement>("divider"), $("error"), $("status")];
const [photograph, painted] = [$<HTMLCanvasElement>("photograph"), $<HTMLCanvasElement>("painted")];
const [strength, stroke] = [$<HTMLInputElement>("strength"), $<HTMLInputElement>("stroke")];
const [size, format] = [$<HTMLSelectElement>("size"), $<HTMLSelectElement>("format")];
const several = $<HTMLInputElement>("several");

let models: Model[] = [];
let model: Model;
let chosen = new Map<string, number>(); // names of styles, and their weights
let photo: { name: string; width: number; height: number; preview: ImageBitmap } | undefined;
let last: { look: string; picture: ImageBitmap } | undefined; // the painting that is shown
let looked = 1 << 17; // pixels that are painted to look at
let camera: Camera | undefined;
let recording: Recording | undefined;
let saving: AbortController | undefined;

// What is said

const watch: Watch = (done, all, what) => {
  $("work").hidden = !saving && done >= all;
  $("doing").textContent = what;
  $<HTMLProgressElement>("progress").value = done / all;
};

/** Does what may fail, and says so in one line. */
async function trying(work: () => Promise<void> | void): Promise<void> {
  error.textContent = "";
  try {
    await work();
  } catch (failure) {
    if (!(failure instanceof Cancelled)) error.textContent = failure instanceof Error ? failure.message : String(failure);
    $("work").hidden = true;
  }
}

// What is shown

function show(source: CanvasImageSource, width: number, height: number): void {
  [photograph.width, photograph.height] = [width, height];
  photograph.getContext("2d")!.drawImage(source, 0, 0, width, height);
  if (frame.hidden) {
    [frame.hidden, $("empty").hidden] = [false, true];
  }
}

/** Draws the painting over the photograph, as strong as is wished. */
function compose(look: Look): void {
  if (!last && look.mix) return;
  const { width, height } = photograph;
  if (painted.width !== width || painted.height !== height) [painted.width, painted.height] = [width, height];
  const context = painted.getContext("2d")!;
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  if (look.mix < 1) context.drawImage(photograph, 0, 0);
  context.globalAlpha = look.mix;
  context.imageSmoothingQuality = "high";
  if (last) context.drawImage(last.picture, 0, 0, width, height);
}

const look = (): Look => lookOf(model, chosen, strength.valueAsNumber / 100, 2 ** (stroke.valueAsNumber / 10));
const seen = (): Look => ({ ...look(), mix: 1 }); // mixing with the photograph is the page's, at once

let [wanted, finer, busy] = [false, false, false];

/** Paints what is shown, again where something changed on the way. */
async function repaint(): Promise<void> {
  wanted = true;
  delete document.documentElement.dataset.painted;
  if (busy) return;
  busy = true;
  try {
    while (wanted && photo && !camera) {
      wanted = false;
      await paintOnce(photo);
    }
    if (photo && !camera) document.documentElement.dataset.painted = "";
  } finally {
    busy = false;
  }
  keepAll();
}

async function paintOnce(shown: NonNullable<typeof photo>): Promise<void> {
  const asked = seen();
  const key = JSON.stringify(asked);
  if (look().mix && (last?.look !== key || finer)) {
    finer = false;
    const all = shown.width * shown.height;
    const pixels = Math.min(looked, all);
    const stroke = shownStroke(asked.stroke, pixels, all);
    const { picture, seconds } = await run("paint", { look: { ...asked, stroke }, pixels }, { watch });
    $("work").hidden = !saving;
    if (shown !== photo || camera) return;
    last = { look: key, picture };
    const next = steady(pixels, seconds, LOOK_SECONDS, [LEAST, MOST]);
    if (next > 1.5 * looked && picture.width < shown.width) finer = wanted = true; // as there is time
    looked = next;
  }
  compose(look());
}

const changed = (): void => {
  for (const slider of [strength, stroke]) {
    const value = slider === stroke ? `${look().stroke.toFixed(1)}×` : `${slider.value} %`;
    slider.parentElement!.querySelector("output")!.textContent = value;
    slider.setAttribute("aria-valuetext", value);
  }
  const all = photo && !camera ? photo.width * photo.height : 0;
  $("finer").hidden = look().stroke ** 2 * looked >= all;
  if (!camera) void trying(repaint);
};

// Styles

function listStyles(): void {
  $("styles").replaceChildren(
    ...models.flatMap((of) =>
      of.styles.map((style) => {
        const button = document.createElement("button");
        const image = Object.assign(new Image(128, 128), { src: `models/${style.thumbnail}`, alt: "", loading: "lazy" });
        button.type = "button";
        button.dataset.style = `${of.name}/${style.name}`;
        button.append(image, style.title);
        button.onclick = () => choose(of, style.name);
        return button;
      }),
    ),
  );
}

function choose(of: Model, name: string): void {
  const add = several.checked && of === model && "style_weights" in of.inputs;
  if (!add) chosen = new Map([[name, 50]]);
  else if (!chosen.delete(name) || !chosen.size) chosen.set(name, 50);
  model = of;
  showChoice();
  changed();
}

function showChoice(): void {
  for (const button of $("styles").querySelectorAll("button")) {
    const [of, name] = button.dataset.style!.split("/") as [string, string];
    button.setAttribute("aria-pressed", String(of === model.name && chosen.has(name)));
  }
  const styles = model.styles.filter(({ name }) => chosen.has(name));
  $("credit").textContent = styles
    .map(({ title, artist, year }) => [title, artist, year].filter(Boolean).join(", "))
    .join(" · ");
  const blends = "style_weights" in model.inputs && model.styles.length > 1;
  $("several-label").hidden = !blends;
  $("blend").hidden = !blends || styles.length < 2;
  $("blend").replaceChildren(
    ...styles.map(({ name, title }) => {
      const label = Object.assign(document.createElement("label"), { htmlFor: `weight-${name}`, textContent: title });
      const slider = Object.assign(document.createElement("input"), { id: `weight-${name}`, type: "range", min: "0", max: "100" });
      const output = document.createElement("output");
      const row = document.createElement("div");
      slider.value = String(chosen.get(name));
      const say = (): void => void (output.textContent = slider.value);
      slider.oninput = () => {
        chosen.set(name, slider.valueAsNumber);
        say();
        changed();
      };
      say();
      row.className = "slider";
      row.append(label, slider, output);
      return row;
    }),
  );
}

// Photographs

async function open(file: Blob, name: string): Promise<void> {
  if (saving) throw new Error("A painting is being saved: cancel it first.");
  status.textContent = "Opening the photograph…";
  delete document.documentElement.dataset.painted;
  const opened = await run("open", { file, pixels: SHOWN }).finally(() => (status.textContent = ""));
  await stopCamera();
  photo = { name: name.replace(/\.[^.]*$/, "") || "photograph", ...opened };
  last = undefined;
  show(photo.preview, photo.preview.width, photo.preview.height);
  painted.getContext("2d")!.clearRect(0, 0, painted.width, painted.height);
  listSizes(photo);
  changed();
  [$("photo-tools").hidden, $("camera-tools").hidden] = [false, true];
  await repaint();
}

function listSizes({ width, height }: { width: number; height: number }): void {
  const sides = [1, 0.5, 0.25].filter((share) => share === 1 || Math.max(width, height) * share >= 1000);
  size.replaceChildren(
    ...sides.map((share) => {
      const [columns, rows] = fit(width, height, width * height * share * share);
      return new Option(`${columns} × ${rows}`, String(share));
    }),
  );
}

const first = (files: FileList | undefined): void => {
  const file = files?.[0];
  if (file) void trying(() => open(file, file.name));
};

function offer(blob: Blob, name: string): void {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function download(): Promise<void> {
  const { name, width, height } = photo!;
  const share = Number(size.value);
  saving = new AbortController();
  [$("cancel").hidden, $<HTMLButtonElement>("download").disabled] = [false, true];
  watch(0, 1, "Painting");
  const styles = [...chosen.keys()].join("_");
  try {
    const pixels = width * height * share * share;
    const blob = await run("save", { look: look(), pixels, type: format.value }, { watch, signal: saving.signal });
    if (blob.type !== format.value) throw new Error("This browser cannot write that format: choose the other one.");
    offer(blob, `${name}.${styles}.${format.value === "image/png" ? "png" : "jpg"}`);
    status.textContent = `Painted: ${size.selectedOptions[0]!.text}.`;
  } catch (failure) {
    if (failure instanceof Cancelled) status.textContent = "Cancelled; nothing was saved.";
    throw failure;
  } finally {
    saving = undefined;
    [$("cancel").hidden, $("work").hidden, $<HTMLButtonElement>("download").disabled] = [true, true, false];
  }
}

// The camera

async function startCamera(): Promise<void> {
  if (camera) return;
  status.textContent = "Starting the camera…";
  const started = await Camera.start().finally(() => (status.textContent = ""));
  camera = started;
  last = undefined;
  [$("photo-tools").hidden, $("camera-tools").hidden] = [true, false];
  try {
    await paintLive(started);
  } catch (failure) {
    await leaveCamera();
    throw failure;
  }
}

/** Paints the camera's frames, of a size that keeps their rate, until it is stopped. */
async function paintLive(started: Camera): Promise<void> {
  let [pixels, rate] = [LEAST, 0];
  while (camera === started) {
    const began = performance.now();
    const now = await started.frame(pixels);
    const { width, height } = now;
    const shown = await createImageBitmap(now);
    const { picture, seconds } = await run("frame", { look: seen(), frame: now }, { watch, transfer: [now] });
    if (camera !== started) break;
    last = { look: "", picture };
    show(shown, width, height);
    compose(look());
    const took = (performance.now() - began) / 1000;
    rate = rate ? 0.9 * rate + 0.1 / took : 1 / seconds;
    // A recording keeps its size.
    if (!recording) pixels = steady(pixels, took, FRAME_SECONDS, [LEAST / 4, MOST]);
    status.textContent = `${rate.toFixed(0)} frames a second, ${width} × ${height}`;
  }
}

async function stopCamera(): Promise<void> {
  if (recording) await record();
  camera?.stop();
  camera = undefined;
}

async function shoot(): Promise<void> {
  const still = await camera!.frame();
  const canvas = new OffscreenCanvas(still.width, still.height);
  canvas.getContext("2d")!.drawImage(still, 0, 0);
  await open(await canvas.convertToBlob({ type: "image/png" }), "camera");
}

async function record(): Promise<void> {
  if (recording) {
    const done = recording;
    recording = undefined;
    const blob = await done.stop();
    offer(blob, `camera.${[...chosen.keys()].join("_")}.${blob.type.endsWith("mp4") ? "mp4" : "webm"}`);
  } else recording = new Recording(painted);
  $("record").setAttribute("aria-pressed", String(!!recording));
  $("record").textContent = recording ? "Stop recording" : "Record a video";
}

async function leaveCamera(): Promise<void> {
  await stopCamera();
  $("camera-tools").hidden = true;
  status.textContent = "";
  if (!photo) {
    [frame.hidden, $("empty").hidden] = [true, false];
    return;
  }
  $("photo-tools").hidden = false;
  show(photo.preview, photo.preview.width, photo.preview.height);
  last = undefined;
  await repaint();
}

// Beginning

let kept = false;

/** Has the service worker keep every style for when there is no network. */
function keepAll(): void {
  if (kept || !photo || !navigator.serviceWorker?.controller) return;
  kept = true;
  const files = models.flatMap(({ file, quick, tiles }) => [file, quick, tiles?.file]).filter((name) => name);
  void Promise.all(files.map((name) => fetch(`models/${name}`, { priority: "low" }))).then(() => {
    document.documentElement.dataset.offline = "";
  });
}

/** Returns how many threads may be used; without isolation, one. */
function threads(): number {
  return crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/** Starts the service worker, and loads the page once more where that gives it threads. */
async function isolate(): Promise<void> {
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  const registration = await navigator.serviceWorker.register("sw.js").catch(() => undefined);
  if (!registration || crossOriginIsolated || sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "tried"); // once, or a browser that cannot would reload for ever
  await navigator.serviceWorker.ready;
  location.reload();
  await new Promise(() => {});
}

async function begin(): Promise<void> {
  if (!globalThis.WebAssembly) throw new Error("This browser has no WebAssembly, which the page paints with: try a newer one.");
  await isolate();
  const response = await fetch("models/models.json").catch(() => undefined);
  if (!response?.ok) throw new Error("The styles cannot be loaded. Are you offline? Reload the page.");
  models = (await response.json()) as Model[];
  [model] = models as [Model];
  chosen = new Map([[model.styles[0]!.name, 50]]);
  await run("begin", { models, folder: new URL("models/", location.href).href, threads: threads() });
  listStyles();
  showChoice();
  changed();
  const count = threads();
  $("threads").textContent =
    count > 1
      ? `Paints with ${count} threads.`
      : "Paints with one thread, slowly: the browser, or the site that the page comes from, allows no more.";
  document.documentElement.dataset.ready = "";
}

const doing: Record<string, () => Promise<void> | void> = {
  choose: () => $("file").click(),
  camera: startCamera,
  cat: async () => open(await (await fetch("cat.jpg")).blob(), "cat.jpg"),
};
for (const button of document.querySelectorAll<HTMLElement>("[data-do]")) {
  button.onclick = () => void trying(() => doing[button.dataset.do!]!());
}
$("download").onclick = () => void trying(download);
$("cancel").onclick = () => saving?.abort();
$("shoot").onclick = () => void trying(shoot);
$("record").onclick = () => void trying(record);
$("stop").onclick = () => void trying(leaveCamera);
for (const slider of [strength, stroke]) slider.oninput = changed;
several.onchange = () => {
  if (!several.checked) choose(model, [...chosen.keys()][0]!);
};
divider.oninput = () => frame.style.setProperty("--shown", `${divider.value}%`);
$<HTMLInputElement>("file").onchange = (event) => {
  const input = event.target as HTMLInputElement;
  first(input.files ?? undefined);
  input.value = "";
};
document.onpaste = (event) => first(event.clipboardData?.files);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = () => document.body.classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  first(event.dataTransfer?.files);
};
void trying(begin);
