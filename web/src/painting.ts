// A model at work: small pictures whole, large ones in tiles that share the statistics of the whole picture.

import type { Look, Model, Stages } from "./models";
import { fromModel, padding, type Picture, toModel } from "./pixels";
import { load, ort, type Progress } from "./runtime";
import { addGrain, changeOf, halved, restoreEdges } from "./stroke";
import { area, indicesOf, normOf, sampleOf, type Statistics, type Tile, tilesOf } from "./tiling";

type Tensors = Record<string, ort.Tensor>;

const TILE = 512; // px, side of what is kept of a tile
const KEPT_BYTES = 2 ** 29; // of maps that wait for statistics: some 25 megapixels of ours
const SAMPLED_BYTES = 2 ** 28; // of a larger picture, which is sampled
const SAMPLED_TILE = 64; // px
const WHOLE = 1 << 19; // pixels of the largest picture that is run in one piece

/** Returns the tensors of what a model takes beside the picture. */
export function optional(model: Model, look: Look): Tensors {
  const named = Object.entries(model.inputs).map(([name, usual]) => {
    const values = Float32Array.from(look.inputs[name] ?? usual);
    return [name, new ort.Tensor("float32", values, [values.length])] as const;
  });
  return Object.fromEntries(named);
}

const toTensor = (picture: Picture, least: number): ort.Tensor => {
  const { width, height, data } = toModel(picture, least);
  return new ort.Tensor("uint8", data, [1, height, width, 3]);
};

const pick = (tensors: Tensors, names: string[]): Tensors =>
  Object.fromEntries(names.map((name) => [name, tensors[name]!]));

const int64 = (values: number[]): ort.Tensor => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);

/** A picture that is read and written in parts. */
export interface Canvas {
  width: number;
  height: number;
  read(tile: Tile["seen"]): Picture;
  under?(tile: Tile["seen"]): Picture; // what the model paints over; without it, the picture
  write(tile: Tile["core"], picture: Picture): void;
}

/** Makes a session; the pool keeps what a session once had, too much where there are many. */
const session = (content: Uint8Array, pool: boolean): Promise<ort.InferenceSession> =>
  ort.InferenceSession.create(content, { executionProviders: ["wasm"], enableCpuMemArena: pool, logSeverityLevel: 3 });

/** A model's sessions, made when they are first needed. */
export class Painting {
  private whole = new Map<string, Promise<ort.InferenceSession>>();
  private stages?: Promise<ort.InferenceSession[]>;

  constructor(
    private model: Model,
    private folder: string,
  ) {}

  /** The share of a first layer that the model paints over. */
  get underpainting(): number {
    return this.model.underpainting;
  }

  /** Paints a picture in one piece, in place, over its underpainting, and returns how many seconds the model took. */
  async paint(picture: Picture, look: Look, progress: Progress, quick = false): Promise<number> {
    if (!this.underpainting) return this.paintOnce(picture, picture, look, progress, quick);
    const { width, height, data } = picture;
    const [small, under] = [halved(picture), { width, height, data: data.slice() }];
    addGrain(small);
    const layer = { width: small.width, height: small.height, data: small.data.slice() };
    const seconds = await this.paintOnce(layer, layer, { ...look, mix: 1 }, progress, quick);
    restoreEdges(under, { top: 0, height }, changeOf(small, layer), [small.width, small.height], this.underpainting);
    addGrain(under);
    return seconds + (await this.paintOnce(picture, under, look, progress, quick));
  }

  /** Replaces a picture's pixels by what the model makes of another picture of that size. */
  private async paintOnce(picture: Picture, seen: Picture, look: Look, progress: Progress, quick: boolean): Promise<number> {
    const file = (quick && this.model.quick) || this.model.file;
    if (!this.whole.has(file)) this.whole.set(file, this.load(file, progress));
    const ready = await this.whole.get(file)!.catch((error: unknown) => {
      this.whole.delete(file);
      throw error;
    });
    const image = toTensor(seen, this.model.minSize);
    const began = performance.now();
    const { stylized } = (await ready.run({ image, ...optional(this.model, look) })) as Tensors;
    const seconds = (performance.now() - began) / 1000;
    const place = padding(picture.width, picture.height, this.model.minSize);
    fromModel(picture, stylized!.data as Uint8Array, place, look.mix);
    return seconds;
  }

  private async load(file: string, progress: Progress): Promise<ort.InferenceSession> {
    return session(await load(this.folder + file, 1 << 20, progress), true);
  }

  /**
   * Paints a picture of any size over what the caller has painted under it, in tiles where it is large.
   * @param turn is awaited between tiles, and throws where the work is to end
   */
  async paintAll(canvas: Canvas, look: Look, progress: Progress, turn: () => Promise<void>): Promise<void> {
    const { width, height } = canvas;
    const all = { left: 0, top: 0, right: width, bottom: height };
    const small = Math.min(width, height) < this.model.minSize;
    if (width * height <= WHOLE || small || !this.model.tiles) {
      const picture = canvas.read(all);
      await this.paintOnce(picture, canvas.under?.(all) ?? picture, look, progress, false);
      await turn();
      canvas.write(all, picture);
    } else {
      await this.paintTiles(canvas, look, this.model.tiles, progress, turn);
    }
  }

  private async paintTiles(
    canvas: Canvas,
    look: Look,
    { file, halo, stride, bytesPerPixel, epsilon, stages }: Stages,
    progress: Progress,
    turn: () => Promise<void>,
  ): Promise<void> {
    this.stages ??= load(this.folder + file, 1 << 20, () => {}).then(async (content) => {
      const sessions = [];
      for (const { start, end } of stages) sessions.push(await session(content.subarray(start, end), false));
      return sessions;
    });
    const sessions = await this.stages;
    const { width, height } = canvas;
    const tiles = tilesOf(width, height, TILE, stride, halo);
    const kept = bytesPerPixel * tiles.reduce((sum, tile) => sum + area(tile.seen), 0) <= KEPT_BYTES;
    const samples = SAMPLED_BYTES / bytesPerPixel / (SAMPLED_TILE + 2 * halo) ** 2;
    const gathered = kept ? tiles : sampleOf(tilesOf(width, height, SAMPLED_TILE, stride, halo), samples);
    // The last norm's input has the size of the picture and is the largest: it is made twice rather than kept.
    const last = stages.length - 2;
    const steps = [gathered.length * (last + 1), tiles.length * (kept ? 2 : stages.length)] as const;
    let done = 0;
    const given = optional(this.model, look);

    const advance = async (number: number, state: Tensors, tile: Tile): Promise<[Tensors, Tensors]> => {
      const { inputs, lives, axes } = stages[number]!;
      const feeds: Tensors = { ...given, ...state };
      if (axes) {
        const { core, seen } = tile;
        const rows = indicesOf(axes[0], core.top - seen.top, tile.lastRow ? null : core.bottom - seen.top);
        const columns = indicesOf(axes[1], core.left - seen.left, tile.lastColumn ? null : core.right - seen.left);
        feeds["tiling/start"] = int64([rows[0], columns[0]]);
        feeds["tiling/end"] = int64([rows[1], columns[1]]);
      }
      const found = (await sessions[number]!.run(pick(feeds, inputs))) as Tensors;
      progress(++done, steps[0] + steps[1]);
      await turn();
      return [pick({ ...state, ...found }, lives), found];
    };
    const begin = (tile: Tile): Tensors => ({ image: toTensor((canvas.under ?? canvas.read)(tile.seen), 1) });

    const states: Tensors[] = [];
    for (let number = 0; number <= last; number++) {
      const counted: Statistics[] = [];
      for (const [i, tile] of gathered.entries()) {
        const [state, found] = await advance(number, number ? states[i]! : begin(tile), tile);
        if (number < last) states[i] = state;
        const [mean, variance, shape] = ["mean", "variance", "shape"].map((name) => found[`tiling/${number}/${name}`]!);
        counted.push({
          pixels: Number((shape!.data as BigInt64Array)[2]! * (shape!.data as BigInt64Array)[3]!),
          mean: mean!.data as Float32Array,
          variance: variance!.data as Float32Array,
        });
      }
      for (const [name, values] of Object.entries(normOf(counted, epsilon))) {
        given[`tiling/${number}/${name}`] = new ort.Tensor("float32", values, [1, values.length, 1, 1]);
      }
    }
    if (!kept) states.length = 0;
    for (const [i, tile] of tiles.entries()) {
      let state = kept && last > 0 ? states[i]! : begin(tile);
      delete states[i];
      for (let number = kept ? Math.max(last, 0) : 0; number < stages.length; number++) {
        [state] = await advance(number, state, tile);
      }
      const { core, seen } = tile;
      const picture = canvas.read(core);
      const place = { left: core.left - seen.left, top: core.top - seen.top, width: seen.right - seen.left };
      fromModel(picture, Object.values(state)[0]!.data as Uint8Array, place, look.mix);
      canvas.write(core, picture);
    }
  }
}
