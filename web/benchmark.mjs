// How fast, small and frugal the page is: node benchmark.mjs → ../benchmarks/web.json
// Speed is a ratio to `session.run` in Python with the same file, in turns. Both paint twice, as the model asks: half the
// size, then all of it. First `npm run build`.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";
import { preview } from "vite";

const MODEL = "gallery";
const TURNS = 15;
const [COLUMNS, ROWS] = [6000, 4000];
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const PYTHON = process.env.PYTHON ?? "python";
const OUTPUT = "../benchmarks/web.json";
const parts = process.argv.slice(2); // size, memory, or names of CASES; none: all
const CASES = [
  ["512x512, float, 2 threads", "float", `../checkpoints/${MODEL}.onnx`, 512, 2],
  ["512x512, 8 bits, 2 threads", "quick", `../checkpoints/${MODEL}.int8.onnx`, 512, 2],
  ["256x256, 8 bits, 1 thread", "quick", `../checkpoints/${MODEL}.int8.onnx`, 256, 1],
];
const PEER = `
import sys, time, numpy, onnxruntime
from onnxruntime import InferenceSession, SessionOptions
sessions = {}
for line in sys.stdin:
    file, side, threads = line.split()
    if (file, threads) not in sessions:
        options = SessionOptions()
        options.intra_op_num_threads = int(threads)
        sessions[file, threads] = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    sides = int(side) // 2, int(side)
    pictures = [numpy.random.default_rng(0).integers(0, 256, (1, side, side, 3), numpy.uint8) for side in sides]
    began, worked = time.perf_counter(), time.process_time()
    for picture in pictures:
        sessions[file, threads].run(None, {"image": picture})
    print(time.perf_counter() - began, time.process_time() - worked, flush=True)
`;

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const zipped = (path) => gzipSync(readFileSync(path), { level: 9 }).length;

function sizes() {
  const files = readdirSync("dist", { recursive: true }).map((name) => join("dist", name)).filter((path) => statSync(path).isFile());
  const sum = (some) => some.reduce((bytes, path) => bytes + zipped(path), 0);
  const page = files.filter((path) => /\.(html|css|svg|webp)$|index-.*\.js$|sw\.js$|models\.json$/.test(path));
  const wasm = files.filter((path) => /worker-.*\.js$|ort-wasm.*\.(mjs|wasm)$/.test(path));
  const model = files.filter((path) => /\.onnx$/.test(path) && path.includes(`${MODEL}.`) && !path.includes("int8"));
  return {
    first_load_kB_gzipped: sum(page) / 1e3,
    wasm_MB_gzipped: sum(wasm) / 1e6,
    one_model_MB_gzipped: sum(model) / 1e6,
    what: "first load: all of the page but onnxruntime-web, its worker and the models; thumbnails of all styles",
  };
}

/** Starts a browser, and says which process it is. */
async function launch() {
  const server = await chromium.launchServer({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  const browser = await chromium.connect(server.wsEndpoint());
  const close = () => browser.close().then(() => server.close());
  return { page: await browser.newPage(), root: server.process().pid, close };
}

async function speed(url) {
  const { page, root, close } = await launch();
  page.setDefaultTimeout(600_000);
  await page.goto(url);
  await page.waitForSelector("html[data-ready]");
  if (!(await page.evaluate(() => crossOriginIsolated))) throw new Error("the page has no threads");
  const worker = readdirSync("dist/assets").find((name) => /^worker-.*\.js$/.test(name));
  await page.evaluate(async (name) => {
    const models = await (await fetch("models/models.json")).json();
    const made = {};
    const workerOf = async (threads) => {
      if (made[threads]) return made[threads];
      const started = new Worker(`assets/${name}`, { type: "module" });
      const run = (job, options, transfer = []) =>
        new Promise((resolve, reject) => {
          started.onmessage = ({ data }) => ("result" in data ? resolve(data.result) : "error" in data && reject(new Error(data.error)));
          started.postMessage({ id: 1, job, options }, transfer);
        });
      await run("begin", { models, folder: new URL("models/", location.href).href, threads });
      return (made[threads] = run);
    };
    globalThis.measure = async (job, model, side, threads) => {
      const run = await workerOf(threads);
      const canvas = new OffscreenCanvas(side, side);
      const context = canvas.getContext("2d");
      for (let i = 0; i < side; i += 4) {
        context.fillStyle = `hsl(${i} 70% 50%)`;
        context.fillRect(i, 0, 4, side);
      }
      const look = { model, inputs: {}, mix: 1, stroke: 1 };
      if (job === "quick") {
        const frame = canvas.transferToImageBitmap();
        return (await run("frame", { look, frame }, [frame])).seconds;
      }
      await run("open", { file: await canvas.convertToBlob(), pixels: side * side });
      return (await run("paint", { look, pixels: side * side })).seconds;
    };
  }, worker);
  const peer = spawn(PYTHON, ["-c", PEER]);
  const lines = createInterface({ input: peer.stdout })[Symbol.asyncIterator]();
  const ask = async (...words) => {
    peer.stdin.write(`${words.join(" ")}\n`);
    return (await lines.next()).value.split(" ").map(Number);
  };
  const found = {};
  for (const [name, job, file, side, threads] of CASES.filter(([name]) => wanted(name))) {
    const measured = { page_s: [], page_processor_s: [], python_s: [], python_processor_s: [] };
    const here = () => page.evaluate((given) => globalThis.measure(...given), [job, MODEL, side, threads]);
    for (let i = 0; i < 3; i++) await Promise.all([here(), ask(file, side, threads)]); // until code is compiled
    for (let i = 0; i < TURNS; i++) {
      const before = usage(root).seconds;
      measured.page_s.push(await here());
      measured.page_processor_s.push(usage(root).seconds - before);
      const [seconds, worked] = await ask(file, side, threads);
      measured.python_s.push(seconds);
      measured.python_processor_s.push(worked);
    }
    const middle = Object.fromEntries(Object.entries(measured).map(([what, values]) => [what, median(values)]));
    found[name] = {
      ratio: middle.python_s / middle.page_s,
      ratio_of_least: Math.min(...measured.python_s) / Math.min(...measured.page_s),
      page_frames_per_second: 1 / middle.page_s,
      page_frames_per_processor_second: 1 / middle.page_processor_s,
      median: middle,
      all: measured,
      ...conditions(),
    };
    console.log(name, { ...found[name], all: undefined });
  }
  peer.stdin.end();
  await close();
  return found;
}

/** Returns what a browser uses: proportional set size, bytes, of its renderers and of all; renderers' processor seconds. */
function usage(root) {
  const children = {};
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const parent = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/.*\) . /s, "").split(" ")[0];
      (children[parent] ??= []).push(pid);
    } catch {
      // it has just ended
    }
  }
  const sums = { renderer: 0, all: 0, seconds: 0 };
  const visit = (pid) => {
    try {
      const bytes = 1024 * Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1]);
      sums.all += bytes;
      if (readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("--type=renderer")) {
        sums.renderer += bytes;
        const ticks = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/.*\) /s, "").split(" ");
        sums.seconds += (Number(ticks[11]) + Number(ticks[12])) / 100; // proc(5): utime and stime, USER_HZ
      }
    } catch {
      // it has just ended
    }
    for (const child of children[pid] ?? []) visit(child);
  };
  visit(String(root));
  return sums;
}

async function memoryOf24Megapixels(url) {
  const folder = mkdtempSync(join(tmpdir(), "web-benchmark-"));
  const photograph = join(folder, "large.jpg");
  const draw = `
import sys, skimage.data
from PIL import Image
Image.fromarray(skimage.data.stereo_motorcycle()[0]).resize((${COLUMNS}, ${ROWS})).save(sys.argv[1], quality=92)`;
  execFileSync(PYTHON, ["-c", draw, photograph]);
  const { page, root, close } = await launch();
  page.setDefaultTimeout(3_600_000);
  await page.goto("about:blank");
  const [before, peak] = [usage(root), { renderer: 0, all: 0 }];
  const timer = setInterval(() => {
    const now = usage(root);
    for (const kind of Object.keys(peak)) peak[kind] = Math.max(peak[kind], now[kind]);
  }, 2000); // it is work, too
  await page.goto(url);
  await page.waitForSelector("html[data-ready]");
  await page.setInputFiles("#file", photograph);
  await page.waitForSelector("html[data-painted]", { state: "attached" });
  const preview_GB = peak.renderer / 1e9;
  const began = performance.now();
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const saved = join(folder, "painted.jpg");
  await download.saveAs(saved);
  const seconds = (performance.now() - began) / 1000;
  clearInterval(timer);
  await close();
  if (!existsSync(saved)) throw new Error("nothing was saved");
  return {
    renderer_GB: peak.renderer / 1e9,
    all_processes_GB: peak.all / 1e9,
    all_processes_before_GB: before.all / 1e9,
    renderer_with_the_preview_alone_GB: preview_GB,
    seconds,
    what: "peak proportional set size while 6000×4000 JPEG becomes JPEG; the renderer is the page with its workers",
  };
}

const server = await preview({ preview: { port: 0 }, logLevel: "error" });
const url = server.resolvedUrls.local[0];
const kept = existsSync(OUTPUT) ? JSON.parse(readFileSync(OUTPUT, "utf8")) : { results: {} };
const wanted = (part) => !parts.length || parts.includes(part);
const commit = execFileSync("git", ["rev-parse", "--short=12", "HEAD"], { encoding: "utf8" }).trim();
const conditions = () => ({ load_average: loadavg()[0], commit, date: new Date().toISOString().slice(0, 10) });
if (wanted("size")) kept.results.size = { ...sizes(), ...conditions() };
if (CASES.some(([name]) => wanted(name))) kept.results.speed = { ...kept.results.speed, ...(await speed(url)) };
if (wanted("memory")) kept.results.memory_24_megapixels = { ...(await memoryOf24Megapixels(url)), ...conditions() };
const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;
Object.assign(kept, {
  model: MODEL,
  cores: cpus().length,
  processor: cpus()[0].model,
  beside: process.env.BESIDE ?? "nothing else ran",
  versions: {
    "onnxruntime-web": version("onnxruntime-web"),
    onnxruntime: execFileSync(PYTHON, ["-c", "import onnxruntime; print(onnxruntime.__version__)"], { encoding: "utf8" }).trim(),
    chromium: execFileSync(CHROMIUM, ["--version"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim(),
  },
});
writeFileSync(OUTPUT, `${JSON.stringify(kept, null, 1)}\n`);
console.log(JSON.stringify(kept.results.size, null, 1), kept.results.memory_24_megapixels);
await server.close();
process.exit();
