// What the visitor chose, as a model takes it.

import type { Look, Model } from "./models";

/** Returns shares that sum to 1, in the model's order; all 0 counts as alike. */
export function shares(model: Model, chosen: ReadonlyMap<string, number>): number[] {
  const weights = model.styles.map(({ name }) => chosen.get(name) ?? 0);
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight, i) => (all ? weight / all : chosen.has(model.styles[i]!.name) ? 1 / chosen.size : 0));
}

/** Returns what is asked of a model: between 0 and 1 a blend of vectors where it can, as `Stylizer.stylize` has it. */
export function lookOf(model: Model, chosen: ReadonlyMap<string, number>, strength: number, stroke: number): Look {
  const inputs: Look["inputs"] = "style_weights" in model.inputs ? { style_weights: shares(model, chosen) } : {};
  const own = Object.entries(model.photograph);
  if (!own.length || strength <= 0 || strength >= 1) return { model: model.name, inputs, mix: strength, stroke };
  const mixed = own.map(([name, values]) => {
    const style = inputs[name] ?? model.inputs[name]!;
    return [name, values.map((value, i) => strength * style[i]! + (1 - strength) * value)] as const;
  });
  const lost = { inputs: model.photograph, share: 1 - strength };
  return { model: model.name, inputs: Object.fromEntries(mixed), mix: 1, lost, stroke };
}
