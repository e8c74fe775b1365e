// wgpu-attention: scaled dot-product attention, softmax(scale * Q * K^T + bias) * V, on WebGPU, with a CPU path in WebAssembly.
// GPU* are the types of WebGPU (npm: @webgpu/types).

import type { Plan as ExportedPlan } from './run-plan.js';
export type { ExportedPlan };

// ---- engine ------------------------------------------------------------------------------------------------------------------

export interface EngineOptions {
  /** Device to compute on. It stays the caller's: `destroy()` does not destroy it. Default: a device is requested. */
  device?: GPUDevice;
  /** Adapter to request a device from. Default: that of `navigator.gpu`, with high performance. */
  adapter?: GPUAdapter;
  /**
   * `auto` (default): a GPU if there is one, else the CPU path; software adapters are not taken. `webgpu`: any adapter, also a
   * software one. `cpu`: the CPU path. A given `device` or `adapter` means `webgpu`.
   */
  backend?: 'auto' | 'webgpu' | 'cpu';
  /** Called during long work of every call. */
  onProgress?: (progress: Progress) => void;
}

export interface Progress {
  /** What is being done. */
  stage: 'compile' | 'check' | 'compute' | 'verify' | 'bench';
  /** Completed share, 0 to 1. */
  share: number;
}

/** Opens a backend. @throws {AttentionError} `no-adapter` if WebGPU was asked for and there is none. */
export function createEngine(options?: EngineOptions): Promise<Engine>;

export interface Engine {
  /** Where it computes. */
  readonly backend: 'webgpu' | 'cpu';
  /** Name of the adapter, or of the CPU path. */
  readonly name: string;
  /** Reason for the choice, a sentence. */
  readonly why: string;
  /** Device, unless it is the CPU path. */
  readonly device?: GPUDevice;
  /** True if the adapter is a software one. */
  readonly isSoftware: boolean;
  /** Bytes of buffers that are kept for later calls. */
  readonly keptBytes: number;
  /** Destroys the buffers that are kept for later calls of the same problems. Kernels stay compiled. */
  clear(): void;
  /** Ends the engine: buffers, worker, and the device if the engine requested it. Later calls fail as `lost`. */
  destroy(): void;
}

/** Why a call failed. */
export class AttentionError extends Error {
  kind:
    | 'invalid' // the request is wrong: `argument` says which part
    | 'unsupported' // right, but not offered here: `remedy`
    | 'limit' // exceeds a limit of the device: `argument` names it
    | 'no-adapter'
    | 'device' // the device failed, for example out of memory
    | 'lost' // the device is gone: create a new engine
    | 'shader' // the browser refused a kernel
    | 'miscomputed' // a kernel failed its trial on this device: use the backend `cpu`
    | 'cancelled'; // by `signal`
  /** Part of the request, limit or kernel that it is about. */
  argument?: string;
  /** What to do. */
  remedy?: string;
}

// ---- a problem -----------------------------------------------------------------------------------------------------------------

export type DType = 'f32' | 'f16' | 'bf16';
/** Elements: f32 numbers, or the bits of f16 or bf16 as Uint16Array. Float32Array is converted where `dtype` is another one. */
export type Elements = Float32Array | Uint16Array;

export interface Shape {
  /** Default 1. */
  batch?: number;
  numHeads: number;
  /** Key/value heads; query head h reads h / (numHeads / numKvHeads). Default `numHeads`. */
  numKvHeads?: number;
  /** Query rows. */
  seqLenQ: number;
  /** Keys. Default `seqLenQ`. */
  seqLenKv?: number;
  /** Width of queries and keys. */
  headDim: number;
  /** Width of values and outputs. Default `headDim`. */
  headDimV?: number;
}

export type Alignment =
  | 'top-left' // row i is at key i: PyTorch's is_causal
  | 'bottom-right' // the last row is at the last key: FlashAttention, decoding
  | { offset: number }; // row i is at key i + offset

/** Broadcasts from the right to [batch, numHeads, seqLenQ, seqLenKv]: each size is that or 1. */
export interface Broadcast<T> {
  data: T;
  shape: number[];
}

export interface Problem {
  shape: Shape;
  /** Storage of query, key and value. Default `f32`. The arithmetic is always f32. */
  dtype?: DType;
  /** Storage of the output. Default `f32`. */
  outputDtype?: DType;
  /** Order of the axes of query, key, value and output: [batch, head, token, dim] or [batch, token, head, dim]. Default `bhsd`. */
  layout?: 'bhsd' | 'bshd';
  /** Factor of the scores. Default 1 / sqrt(headDim). */
  scale?: number;
  /** Hides keys after the row's position. Names the alignment, because libraries disagree. Default `false`. */
  causal?: false | 'top-left' | 'bottom-right';
  /** Position of the rows for `window`, `alibiSlopes`, ... where `causal` does not say it. */
  alignment?: Alignment;
  /** Keys from position - left to position + right are visible, both inclusive; what is left out is unlimited. */
  window?: { left?: number; right?: number };
  /** Scores become softcap * tanh(score / softcap). */
  softcap?: number;
  /** Nonzero: visible. */
  mask?: Broadcast<Uint8Array>;
  /** Added to the scores. */
  bias?: Broadcast<Float32Array>;
  /** Slope of each head: slope * (key - position) is added. [numHeads] */
  alibiSlopes?: Float32Array;
  /** Joins the denominator of each head's rows. [numHeads] */
  sinks?: Float32Array;
  /** Number of keys of each item, the others are padding. [batch] */
  kvLengths?: Uint32Array;
  /** WGSL: `fn score(x: f32, at: Pair) -> f32`, a function of the score; or its text with helpers. docs/terms.md. */
  score?: string;
  /** WGSL: `fn visible(at: Pair) -> bool`. */
  visible?: string;
  /** Tables that `score` and `visible` read by name, as array<f32>, array<i32>, array<u32>. */
  tables?: Record<string, Float32Array | Int32Array | Uint32Array>;
  /** Also return the log-sum-exp of each row. */
  lse?: boolean;
  /** Also return the weights [batch, numHeads, seqLenQ, seqLenKv]. Takes the staged kernels and their memory. */
  weights?: boolean;
  /** Also return the sum of each key's weights over these rows: all, or so many of the last ones. */
  keySums?: 'all' | number;
}

// ---- calls with typed arrays -----------------------------------------------------------------------------------------------------

export interface Tensors {
  query: Elements;
  key: Elements;
  value: Elements;
}

export interface CallOptions {
  /** Cancels: the call fails as `cancelled` after what has been submitted. */
  signal?: AbortSignal;
}

export interface AttentionResult {
  /** As `outputDtype`: f32 as Float32Array, else bits as Uint16Array. Rows that see nothing are 0. */
  output: Elements;
  /** Natural logarithm; -Infinity for rows that see nothing. */
  lse?: Float32Array;
  weights?: Float32Array;
  /** [batch, numKvHeads, seqLenKv]: over rows, and over the heads that share the key. Keys past an item's length have 0. */
  keySums?: Float32Array;
}

/** Computes attention. The first call of each kernel compiles it and tries it on a tiny problem (see `miscomputed`). */
export function attention(engine: Engine, request: Problem & Tensors & CallOptions): Promise<AttentionResult>;

export interface Gradients {
  query?: Elements;
  key?: Elements;
  value?: Elements;
  bias?: Float32Array;
  sinks?: Float32Array;
}

/** Gradients of sum(output * dOutput) + sum(lse * dLse). `want`: default query, key and value. */
export function backward(
  engine: Engine,
  request: Problem & Tensors & CallOptions & { dOutput: Elements; dLse?: Float32Array; want?: (keyof Gradients)[] },
): Promise<Gradients>;

/** Compiles and tries the kernels of a problem, yielding between them, so that the first call need not. */
export function warmUp(engine: Engine, problem: Problem & CallOptions): Promise<void>;

/** What a problem is and how it is computed, without computing it. */
export function explain(engine: Engine, problem: Problem & ExplainOptions): Promise<Explanation>;
export interface ExplainOptions {
  /** Whose visible pairs are shown: item of the batch, and query head. Default 0. */
  item?: number;
  head?: number;
}
export interface Explanation {
  /** Kernels, tiles and grid in words. */
  summary: string;
  /** Visible pairs of the head, 0 or 1, [seqLenQ, seqLenKv]. */
  visible: Uint8Array;
  /** Share of the head's pairs that are visible. */
  density: number;
  /** Multiply-adds times two of the visible pairs, if all heads see as many. */
  flops: number;
}

// ---- arrays that are on the device -------------------------------------------------------------------------------------------------

/** Plans a problem for the engine's device. */
export function plan(engine: Engine, problem: Problem): Promise<AttentionPlan>;

export interface AttentionPlan {
  readonly summary: string;
  /** Tensors to bind, their sizes in bytes and shapes; and the features and limits. The JSON of docs/export.md. */
  readonly exported: ExportedPlan;
  /** Binds the caller's buffers by the names of the plan's tensors. @throws {AttentionError} */
  bind(buffers: Record<string, GPUBuffer | { buffer: GPUBuffer; offset?: number; size?: number }>): BoundAttention;
  destroy(): void;
}

export interface BoundAttention {
  /** Records one compute pass into the caller's encoder: no submit, no copy, no allocation. */
  encode(encoder: GPUCommandEncoder): void;
}

// ---- decoding ------------------------------------------------------------------------------------------------------------------

export type CacheStorage = DType | 'q8' | 'q4';

export interface CacheOptions {
  numHeads: number;
  numKvHeads?: number;
  headDim: number;
  /**
   * Storage of keys and values. Default `f16`. With `hadamard` they are stored rotated, which spreads channels of large
   * magnitude; `headDim` must be a multiple of 32.
   */
  stored?: CacheStorage | { key?: CacheStorage; value?: CacheStorage; hadamard?: boolean };
  /** Sequences at a time. Default 1. */
  sequences?: number;
  /** Tokens that each sequence can have. */
  capacity: number;
  /** Tokens of a page. Default 64. */
  pageSize?: number;
  causal?: 'bottom-right';
  window?: { left: number };
}

export function createCache(engine: Engine, options: CacheOptions): Promise<Cache>;

export interface Cache {
  /** Starts an empty sequence and returns its slot. */
  start(): number;
  /** Frees a sequence. */
  free(slot: number): void;
  /** Drops the tokens from `length` on. */
  truncate(slot: number, length: number): void;
  length(slot: number): number;
  /** Bytes of the device memory. */
  readonly bytes: number;
  /**
   * Appends the keys and values of `tokens` new tokens to each sequence, then attends with their queries: [slots, heads, tokens, dim], f32.
   * Rows see the tokens up to their own.
   */
  step(request: Tensors & CallOptions & { tokens?: number }): Promise<{ output: Float32Array }>;
  destroy(): void;
}

// ---- verification and timing ---------------------------------------------------------------------------------------------------------

export interface VerifyOptions extends CallOptions {
  seed?: number;
  /** Random problems besides the table of options. Default 20. */
  random?: number;
  /** Only cases whose name contains this. */
  filter?: string;
}
export interface VerifyReport {
  passed: number;
  failed: number;
  skipped: number;
  rows: { suite: string; case: string; verdict: 'passed' | 'failed' | 'skipped'; detail: string }[];
}
/** Compares this device with the f64 oracle on generated problems. */
export function verify(engine: Engine, options?: VerifyOptions): Promise<VerifyReport>;

export interface BenchOptions extends CallOptions {
  /** Seconds to measure. Default 1. */
  seconds?: number;
}
/** Times a problem, after its answer was checked against the CPU path: device time of submits, without uploads. */
export function bench(engine: Engine, problem: Problem & BenchOptions): Promise<BenchResult>;
export interface BenchResult {
  name: string;
  backend: string;
  adapter: string;
  /** Milliseconds. */
  median: number;
  min: number;
  max: number;
  /** Of the visible pairs; of all pairs where a head has more than 2^24. */
  gflops: number;
  repetitions: number;
}
