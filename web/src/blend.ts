// What the visitor chose, as a model takes it.

import type { Look, Model } from "./models";

const TRAINED = 512 * 512; // pixels for which a stroke of 1 is right

/** Returns shares that sum to 1, in the model's order; all 0 counts as alike. */
export function shares(model: Model, chosen: ReadonlyMap<string, number>): number[] {
  const weights = model.styles.map(({ name }) => chosen.get(name) ?? 0);
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight, i) => (all ? weight / all : chosen.has(model.styles[i]!.name) ? 1 / chosen.size : 0));
}

/**
 * Returns what a model is asked for. A model that knows no strength is mixed with the photograph.
 * @param strength 0: the photograph, 1: the painting
 * @param stroke 1: as trained; 2: twice as large
 */
export function lookOf(model: Model, chosen: ReadonlyMap<string, number>, strength: number, stroke: number): Look {
  const inputs: Look["inputs"] = {};
  if ("style_weights" in model.inputs) inputs.style_weights = shares(model, chosen);
  if ("strength" in model.inputs) inputs.strength = [strength];
  if ("stroke" in model.inputs) inputs.stroke = [stroke];
  return { model: model.name, inputs, mix: "strength" in model.inputs ? 1 : strength };
}

/** Returns what a model is asked for at a size: strokes of pictures above TRAINED keep their size relative to them. */
export function sized(look: Look, pixels: number): Look {
  const { stroke } = look.inputs;
  const scale = Math.max(1, Math.sqrt(pixels / TRAINED));
  return stroke ? { ...look, inputs: { ...look.inputs, stroke: stroke.map((size) => size * scale) } } : look;
}
