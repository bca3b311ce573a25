import { describe, expect, it } from "vitest";
import { lookOf, shares } from "../../src/blend";
import type { Model } from "../../src/models";
import { addLost, fit, fromModel, overWhite, padding, steady, toModel } from "../../src/pixels";

const style = (name: string) => ({ name, title: name, artist: "", year: 0, licence: "", thumbnail: "" });
const gallery: Model = {
  name: "gallery",
  file: "gallery.onnx",
  minSize: 16,
  underpainting: 0,
  inputs: { style_weights: [0.5, 0.25, 0.25], style_vector: [0, 0] },
  photograph: { style_weights: [0, 0, 0], style_vector: [8, -4] },
  styles: ["a", "b", "c"].map(style),
};
const single: Model = { name: "single", file: "single.onnx", minSize: 16, underpainting: 0, inputs: {}, photograph: {}, styles: [style("single")] };

describe("a blend", () => {
  it("has shares that sum to 1, in the model's order", () => {
    expect(shares(gallery, new Map([["c", 30], ["a", 90]]))).toEqual([0.75, 0, 0.25]);
    expect(shares(gallery, new Map([["b", 0], ["c", 0]]))).toEqual([0, 0.5, 0.5]);
  });

  it("is asked of a model that has several styles", () => {
    const chosen = new Map([["b", 50]]);
    expect(lookOf(gallery, chosen, 1, 2)).toEqual({ model: "gallery", inputs: { style_weights: [0, 1, 0] }, mix: 1, stroke: 2 });
    expect(lookOf(single, chosen, 0.4, 2)).toEqual({ model: "single", inputs: {}, mix: 0.4, stroke: 2 });
  });

  it("of a strength is one of vectors where the model knows the photograph's", () => {
    const { inputs, mix, lost } = lookOf(gallery, new Map([["b", 75], ["a", 25]]), 0.75, 1);
    expect(inputs).toEqual({ style_weights: [0.1875, 0.5625, 0], style_vector: [2, -1] });
    expect([mix, lost]).toEqual([1, { inputs: gallery.photograph, share: 0.25 }]);
    expect(lookOf(gallery, new Map([["b", 50]]), 0, 1).mix).toBe(0);
  });
});

const picture = (width: number, height: number, value: (x: number, y: number, c: number) => number) => {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let i = 0; i < data.length; i++) data[i] = value((i >> 2) % width, Math.floor((i >> 2) / width), i & 3);
  return { width, height, data };
};

describe("pixels", () => {
  it("go to a model with repeated edges and come back where they were", () => {
    const small = picture(3, 2, (x, y, c) => 10 * x + 100 * y + c);
    const { width, height, data } = toModel(small, 8);
    expect([width, height]).toEqual([8, 8]);
    const place = padding(3, 2, 8);
    expect([place.left, place.top]).toEqual([2, 3]); // as numpy pads in `Stylizer`: the smaller half comes first
    for (let y = 0; y < 8; y++) {
      for (let x = 0; x < 8; x++) {
        const [nearX, nearY] = [Math.min(Math.max(x - 2, 0), 2), Math.min(Math.max(y - 3, 0), 1)];
        expect(data[(y * 8 + x) * 3 + 1]).toBe(10 * nearX + 100 * nearY + 1);
      }
    }
    const before = Uint8ClampedArray.from(small.data);
    fromModel(small, data, place);
    expect(small.data).toEqual(before);
  });

  it("are mixed as Pillow does it, and keep their alpha", () => {
    const small = picture(1, 1, (_x, _y, c) => [10, 200, 101, 77][c]!);
    fromModel(small, [20, 100, 100], { left: 0, top: 0, width: 1 }, 0.25);
    expect([...small.data]).toEqual([12, 175, 100, 77]); // 12.5, 175 and 100.75, cut off
  });

  it("get back a share of what was lost, rounded and clipped, and keep their alpha", () => {
    const [painted, photograph, back] = [[100, 250, 3, 9], [50, 90, 10, 1], [41, 50, 30, 2]].map((values) => picture(1, 1, (_x, _y, c) => values[c]!));
    addLost(painted!, photograph!, back!, 0.25);
    expect([...painted!.data]).toEqual([102, 255, 0, 9]); // 102.25, 260 and -2
  });

  it("lie over white where there is no place for alpha", () => {
    const data = Uint8ClampedArray.of(10, 20, 30, 0, 100, 100, 100, 51, 1, 2, 3, 255);
    overWhite(data);
    expect([...data]).toEqual([255, 255, 255, 255, 224, 224, 224, 255, 1, 2, 3, 255]);
  });

  it("are made fewer, never more", () => {
    expect(fit(6000, 4000, 600_000)).toEqual([949, 632]);
    expect(fit(30, 20, 600_000)).toEqual([30, 20]);
    expect(fit(100_000, 1, 100)).toEqual([3162, 1]);
  });

  it("of a frame follow the time it takes, but not its noise", () => {
    expect(steady(1e5, 0.24, 0.12, [1e4, 1e6])).toBeCloseTo(5e4);
    expect(steady(1e5, 0.11, 0.12, [1e4, 1e6])).toBe(1e5);
    expect(steady(1e5, 9, 0.12, [1e4, 1e6])).toBe(1e4);
  });
});
