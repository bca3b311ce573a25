declare const __WASM_BYTES__: number;
