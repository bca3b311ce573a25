// What scripts/web_models.py says of the models, in models/models.json.

export interface Style {
  name: string;
  title: string;
  artist: string;
  year: number | string;
  licence: string;
  thumbnail: string;
}

/** Where rows or columns of a norm's input look: index i is centred on pixel i · step + centre. */
export interface Axis {
  step: number;
  centre: number;
}

/** The graph from one instance norm to the next one's input. */
export interface Stage {
  start: number;
  end: number; // bytes in the file of stages
  inputs: string[];
  lives: string[]; // tensors that later stages need
  axes?: [Axis, Axis]; // of the norm's input that it ends with
}

export interface Stages {
  file: string;
  halo: number; // px around a tile that are looked at
  stride: number; // what the origins of tiles are multiples of
  bytesPerPixel: number; // of the maps that wait for statistics
  epsilon: number;
  stages: Stage[];
}

export interface Model {
  name: string;
  file: string;
  quick?: string; // the same in 8-bit integers
  minSize: number;
  underpainting: number; // share of a first layer, in large strokes, that the model paints over
  inputs: Record<string, number[]>; // beside the picture: name and default
  photograph: Record<string, number[]>; // the inputs with which it gives photographs back; {} where it has learned none
  styles: Style[];
  tiles?: Stages;
}

/** What the visitor asks of a model. */
export interface Look {
  model: string;
  inputs: Record<string, number[]>;
  mix: number; // 1: the painting, 0: the photograph
  lost?: { inputs: Record<string, number[]>; share: number }; // what a picture of these inputs lost is added by its share
  stroke: number; // 1: as trained, 2: strokes twice as large
}
