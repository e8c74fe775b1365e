// Types of run-plan.mjs. GPU* are those of WebGPU (npm: @webgpu/types).

/** A plan, as `attn export --json` writes it and `JSON.parse` reads it. docs/export.md describes every field. */
export interface Plan {
  /** Version of the format; this file is for version 1. */
  version: number;
  /** Kernels, tiles and grids in words. */
  summary: string;
  /** Options of the problem, such as `causal=bottom-right`. */
  options: string[];
  requires: {
    features: string[];
    /** By the names of `GPUSupportedLimits`: the least that each must be. Pass it to `requestDevice` as `requiredLimits`. */
    limits: Record<string, number>;
    /** Lanes that every subgroup must have; null: subgroups of any size will do. */
    subgroupSize: number | null;
  };
  tensors: Tensor[];
  /** Sizes in bytes. */
  scratch: number[];
  kernels: {
    name: string;
    entryPoint: string;
    workgroupSize: [number, number, number];
    /** Goes before `wgsl`. */
    directives: string;
    wgsl: string;
    files: { line: number; name: string }[];
  }[];
  dispatches: {
    /** Index in `kernels`. */
    kernel: number;
    /** Workgroups along x, y and z. */
    grid: [number, number, number];
    bindings: {
      binding: number;
      type: GPUBufferBindingType;
      /** `'params'`, the name of a tensor, or the index of a scratch buffer. */
      buffer: string | number;
      /** In bytes. */
      offset: number;
      /** In bytes; null: to the end. */
      size: number | null;
    }[];
    /** Bytes of the uniform buffer. */
    params: number[];
    /** Estimate of its floating-point operations. */
    flops: number;
  }[];
}

export interface Tensor {
  /** `query`, `key`, `value`, `output`, `lse`, `stats`, `tables`, `bias`, `mask`, `scores`, `weights`, `key_sums`, `d_output`, `cache_key`, ... */
  name: string;
  access: 'read' | 'write';
  /** The mask is u8: one byte per element, 0 = masked. */
  dtype: 'f32' | 'f16' | 'bf16' | 'q8' | 'q4' | 'u32' | 'u8';
  /** Query, key, value and output: [batch, heads, sequence, width], whatever the layout. */
  shape: number[];
  /** In elements. */
  strides: number[];
  /** First element. */
  offset: number;
  /** Bytes that its buffer must have. */
  bytes: number;
  /** Vectors in the `tables` buffer, in order; `offset` in bytes. */
  vectors: { name: string; dtype: 'f32' | 'u32' | 'i32'; offset: number; length: number }[];
}

/** A whole buffer, or a part of one. The offset is a multiple of the device's `minStorageBufferOffsetAlignment`. */
export type Bindable = GPUBuffer | { buffer: GPUBuffer; offset?: number; size?: number };

/** Buffers by the names of the plan's tensors, all with usage STORAGE. */
export type Buffers = Record<string, Bindable | undefined>;

/**
 * Compiles the kernels of a plan and creates its parameters and scratch buffers.
 *
 * Kernels are kept with the device, so plans that share kernels compile them once.
 * @throws {PlanError} if the plan is of another version, needs a feature or limit that the device lacks, or does not compile.
 */
export function preparePlan(device: GPUDevice, plan: Plan): Promise<PreparedPlan>;

/** A plan on a device. Its recordings share scratch, which is safe because a queue runs them in order. */
export interface PreparedPlan {
  readonly plan: Plan;
  /** Binds buffers. Worth keeping. @throws {PlanError} if one is missing, too small, or cannot be bound. */
  bind(buffers: Buffers): BoundPlan;
  /** Frees parameters and scratch. */
  destroy(): void;
}

/** A plan and the buffers that it reads and writes. */
export interface BoundPlan {
  /** Records one compute pass. Nothing is submitted, copied or allocated. */
  record(encoder: GPUCommandEncoder): void;
  /** Records into a compute pass of the caller: all dispatches, or those from `first` on and before `end`. */
  recordIn(pass: GPUComputePassEncoder, first?: number, end?: number): void;
}

export class PlanError extends Error {
  /** `invalid`: the request; `unsupported`, `limit`: the device; `shader`: the compiler; `device`: out of memory. */
  kind: 'invalid' | 'unsupported' | 'limit' | 'shader' | 'device';
  /** Name of the tensor, feature, limit or kernel that it is about. */
  argument: string;
  /** What to do. */
  remedy: string;
}
