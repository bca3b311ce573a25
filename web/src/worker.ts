// Everything that takes time: decoding, painting, encoding. One job after the other; a cancelled one ends early.

import type { Look, Model } from "./models";
import { type Canvas, Painting } from "./painting";
import { addLost, fit, overWhite } from "./pixels";
import { start } from "./runtime";
import { addGrain, changeOf, halved, restoreEdges, seenAt } from "./stroke";

export interface Jobs {
  begin(options: { models: Model[]; folder: string; threads: number }): void;
  open(options: { file: Blob; pixels: number }): { width: number; height: number; preview: ImageBitmap };
  paint(options: { look: Look; pixels: number }): { picture: ImageBitmap; seconds: number };
  frame(options: { look: Look; frame: ImageBitmap }): { picture: ImageBitmap; seconds: number };
  save(options: { look: Look; pixels: number; type: string }): Blob;
}

const TOO_LARGE = "The picture is too large for the memory that this browser has: choose a smaller size.";

export type Answer =
  | { id: number; result: unknown }
  | { id: number; error: string; cancelled: boolean }
  | { id: number; progress: [done: number, all: number, what: string] };

const STRIP = 256; // rows that are put together at a time

type Name = keyof Jobs;
type Result<N extends Name> = ReturnType<Jobs[N]> | Promise<ReturnType<Jobs[N]>>;

let models = new Map<string, Painting>();
let photograph: ImageBitmap | undefined;
let threads = 1;
const cancelled = new Set<number>();
class Cancelled extends Error {}

const report =
  (id: number, what: string) =>
  (done: number, all: number): void =>
    postMessage({ id, progress: [done, all, what] } satisfies Answer);

/** Lets messages in, and throws where one of them has cancelled the job. */
const turn = (id: number) => async (): Promise<void> => {
  await new Promise((resume) => setTimeout(resume));
  if (cancelled.has(id)) throw new Cancelled();
};

function context(width: number, height: number): OffscreenCanvasRenderingContext2D {
  const made = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!made) throw new Error(TOO_LARGE);
  made.imageSmoothingQuality = "high";
  return made;
}

/** Returns a model once onnxruntime-web is there. */
async function ready(look: Look, id: number): Promise<Painting> {
  await start(threads, report(id, "Loading the painter"));
  return models.get(look.model)!;
}

function draw(source: CanvasImageSource, width: number, height: number): ImageData {
  const drawn = context(width, height);
  drawn.drawImage(source, 0, 0, width, height);
  return drawn.getImageData(0, 0, width, height);
}

let givenBack: { source: ImageBitmap; of: string; picture: ImageData } | undefined; // the last photograph, as painted by its own vector

/** Paints a source at a size in one piece, with what it lost where that is asked for. */
async function paint(source: ImageBitmap, pixels: number, look: Look, id: number, quick: boolean) {
  const size = fit(source.width, source.height, pixels);
  let [picture, seconds] = await paintWhole(source, size, look, id, quick);
  if (look.lost) {
    const of = JSON.stringify([look.model, look.stroke, size]);
    if (givenBack?.source !== source || givenBack.of !== of) {
      const [back, more] = await paintWhole(source, size, { ...look, inputs: look.lost.inputs }, id, quick);
      givenBack = { source, of, picture: back };
      seconds += more;
    }
    addLost(picture, draw(source, ...size), givenBack.picture, look.lost.share);
  }
  return { picture: await createImageBitmap(picture), seconds };
}

async function paintWhole(source: ImageBitmap, [width, height]: [number, number], look: Look, id: number, quick: boolean) {
  const painting = await ready(look, id);
  const [picture, loading] = [draw(source, width, height), report(id, "Loading the style")];
  if (look.stroke === 1) return [picture, await painting.paint(picture, look, loading, quick)] as const;
  const size = seenAt(width, height, look.stroke);
  const [small, painted] = [draw(source, ...size), draw(source, ...size)];
  const seconds = await painting.paint(painted, { ...look, mix: 1 }, loading, quick);
  restoreEdges(picture, { top: 0, height }, changeOf(small, painted), size, look.mix);
  return [picture, seconds] as const;
}

/** Returns a drawing as a canvas that is read and written in parts. */
const canvasOf = (drawn: OffscreenCanvasRenderingContext2D): Canvas => ({
  width: drawn.canvas.width,
  height: drawn.canvas.height,
  read: ({ left, top, right, bottom }) => drawn.getImageData(left, top, right - left, bottom - top),
  write: ({ left, top }, picture) => drawn.putImageData(picture as ImageData, left, top),
});

const boxOf = ({ width, height }: Canvas, top = 0, rows = height) => ({ left: 0, top, right: width, bottom: Math.min(top + rows, height) });

type Paint = (canvas: Canvas, mix: number) => Promise<void>;

/** Lays what is painted of a small canvas over the larger one that it was made of. */
async function layOver(canvas: Canvas, small: Canvas, mix: number, paint: Paint, turn: () => Promise<void>): Promise<void> {
  const painted = canvasOf(context(small.width, small.height));
  await paint({ ...small, write: painted.write }, 1);
  const change = changeOf(small.read(boxOf(small)), painted.read(boxOf(painted)));
  for (let top = 0; top < canvas.height; top += STRIP) {
    const box = boxOf(canvas, top, STRIP);
    const rows = canvas.read(box);
    restoreEdges(rows, { top, height: canvas.height }, change, [small.width, small.height], mix);
    canvas.write(box, rows);
    await turn();
  }
}

/** Reads parts of a source as it is at a size. */
function reading(source: CanvasImageSource, [width, height]: [number, number]): Canvas["read"] {
  let part = context(1, 1);
  return ({ left, top, right, bottom }) => {
    const [columns, rows] = [right - left, bottom - top];
    if (part.canvas.width < columns || part.canvas.height < rows) part = context(columns, rows);
    part.clearRect(0, 0, columns, rows);
    part.drawImage(source, -left, -top, width, height);
    return part.getImageData(0, 0, columns, rows);
  };
}

/** Paints a source at a size, in tiles where that is large, and hands on what is painted of it, each part once. */
async function paintAll(source: CanvasImageSource, [width, height]: [number, number], look: Look, id: number, write: Canvas["write"]): Promise<void> {
  const painting = await ready(look, id);
  const once: Paint = (canvas, mix) => painting.paintAll(canvas, { ...look, mix }, report(id, "Painting"), turn(id));
  const layers: Paint = async (canvas, mix) => {
    if (!painting.underpainting) return once(canvas, mix);
    const small = canvasOf(context((canvas.width + 1) >> 1, (canvas.height + 1) >> 1));
    for (let top = 0; top < canvas.height; top += STRIP) {
      const rows = halved(canvas.read(boxOf(canvas, top, STRIP)));
      addGrain(rows, top / 2);
      small.write({ ...boxOf(small), top: top / 2 }, rows);
    }
    const under = canvasOf(context(canvas.width, canvas.height));
    const write: Canvas["write"] = (box, rows) => {
      addGrain(rows, box.top);
      under.write(box, rows);
    };
    await layOver({ ...canvas, write }, small, painting.underpainting, once, turn(id));
    return once({ ...canvas, under: under.read }, mix);
  };
  const whole: Canvas = { width, height, read: reading(source, [width, height]), write };
  if (look.stroke === 1) return layers(whole, look.mix);
  const small = context(...seenAt(width, height, look.stroke));
  small.drawImage(source, 0, 0, small.canvas.width, small.canvas.height);
  return layOver(whole, canvasOf(small), look.mix, layers, turn(id));
}

const jobs: { [N in Name]: (options: Parameters<Jobs[N]>[0], id: number) => Result<N> } = {
  begin(options) {
    threads = options.threads;
    models = new Map(options.models.map((model) => [model.name, new Painting(model, options.folder)]));
  },

  async open({ file, pixels }) {
    const opened = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
      throw new Error(`This browser cannot read ${/heic|heif/i.test(file.type) ? "HEIC pictures" : "this picture"}. Save it as JPEG or PNG and choose that.`);
    });
    photograph?.close();
    photograph = opened;
    const [resizeWidth, resizeHeight] = fit(opened.width, opened.height, pixels);
    const preview = await createImageBitmap(opened, { resizeWidth, resizeHeight, resizeQuality: "high" });
    return { width: opened.width, height: opened.height, preview };
  },

  paint: ({ look, pixels }, id) => paint(photograph!, pixels, look, id, false),

  async frame({ look, frame }, id) {
    const found = await paint(frame, frame.width * frame.height, look, id, true);
    frame.close();
    return found;
  },

  async save({ look, pixels, type }, id) {
    const size = fit(photograph!.width, photograph!.height, pixels);
    const drawn = context(...size);
    const result = canvasOf(drawn);
    const finish: Canvas["write"] = (box, picture) => {
      if (type === "image/jpeg") overWhite(picture.data);
      result.write(box, picture);
    };
    await paintAll(photograph!, size, look, id, look.lost ? result.write : finish);
    if (look.lost) {
      const [{ inputs, share }, read] = [look.lost, reading(photograph!, size)];
      await paintAll(photograph!, size, { ...look, inputs }, id, (box, back) => {
        const painted = result.read(box);
        addLost(painted, read(box), back, share);
        finish(box, painted);
      });
    }
    return drawn.canvas.convertToBlob({ type, quality: 0.95 });
  },
};

let queue = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<{ id: number; job?: Name; options?: never; cancel?: true }>) => {
  const { id, job, options } = data;
  if (!job) {
    cancelled.add(id);
    return;
  }
  queue = queue.then(async () => {
    try {
      await turn(id)();
      const result = await jobs[job](options!, id);
      postMessage({ id, result } satisfies Answer);
    } catch (error) {
      postMessage({ id, error: inWords(error), cancelled: error instanceof Cancelled } satisfies Answer);
    }
    cancelled.delete(id);
  });
};

/** Returns an error in one line for the visitor. */
function inWords(error: unknown): string {
  const told = error instanceof Error ? error.message : String(error);
  if (/memory|bad_alloc|allocat|out of bounds|RangeError|detached/i.test(told)) return TOO_LARGE;
  return told.split("\n")[0]!;
}
