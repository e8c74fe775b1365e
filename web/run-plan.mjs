// Runs an exported plan of wgpu-attention (`attn export --json`, docs/export.md) on the caller's own GPUDevice, GPUBuffers and
// GPUCommandEncoder. Plain WebGPU: no wasm, no dependencies. run-plan.d.ts has the types and describes every function.
//
//   const attention = await preparePlan(device, plan);            // once per plan: kernels, parameters, scratch
//   const bound = attention.bind({ query, key, value, output });  // once per set of buffers
//   bound.record(encoder);                                        // as often as needed; nothing is submitted

const VERSION = 1;
const STORAGE = 0x80; // GPUBufferUsage.STORAGE
const UNIFORM = 0x40; // GPUBufferUsage.UNIFORM
const COMPUTE = 0x4; // GPUShaderStage.COMPUTE

export class PlanError extends Error {
  constructor(kind, argument, why, remedy) {
    super(`${argument}: ${why}; ${remedy}`);
    Object.assign(this, { name: 'PlanError', kind, argument, remedy });
  }
}

export async function preparePlan(device, plan) {
  checkDevice(device, plan);
  const kernels = await Promise.all(plan.kernels.map((_, index) => pipelineOf(device, plan, index)));
  device.pushErrorScope('out-of-memory');
  const scratch = plan.scratch.map((size) => device.createBuffer({ label: 'attention scratch', size, usage: STORAGE }));
  const params = paramsBuffer(device, plan);
  const error = await device.popErrorScope();
  if (error) throw new PlanError('device', 'scratch', `could not be allocated: ${error.message}`, 'free memory, or split the batch');
  return new PreparedPlan(device, plan, kernels, scratch, params);
}

class PreparedPlan {
  constructor(device, plan, kernels, scratch, params) {
    Object.assign(this, { device, plan, kernels, scratch, params });
  }

  bind(buffers) {
    const given = checkBuffers(this.device, this.plan, buffers);
    const groups = new Map();
    const dispatches = this.plan.dispatches.map(({ kernel, grid, bindings }, index) => {
      const { pipeline, layout } = this.kernels[kernel];
      const entries = bindings.map(({ binding, buffer, offset, size }) => {
        if (buffer === 'params') return { binding, resource: this.params.slots[index] };
        if (typeof buffer === 'number') return { binding, resource: { buffer: this.scratch[buffer] } };
        const whole = given[buffer];
        const rest = whole.size - offset;
        return { binding, resource: { buffer: whole.buffer, offset: whole.offset + offset, size: Math.min(size ?? rest, rest) } };
      });
      return { pipeline, grid, group: this.device.createBindGroup({ label: this.plan.kernels[kernel].name, layout, entries }) };
    });
    return new BoundPlan(dispatches);
  }

  destroy() {
    for (const buffer of [...this.scratch, this.params.buffer]) buffer.destroy();
  }
}

class BoundPlan {
  constructor(dispatches) {
    this.dispatches = dispatches;
  }

  record(encoder) {
    const pass = encoder.beginComputePass({ label: 'attention' });
    this.recordIn(pass);
    pass.end();
  }

  recordIn(pass, first = 0, end = this.dispatches.length) {
    for (const { pipeline, group, grid } of this.dispatches.slice(first, end)) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...grid);
    }
  }
}

// Throws if the plan is of another version, or needs what the device does not have.
function checkDevice(device, plan) {
  if (plan?.version !== VERSION) {
    const remedy = `export it again by an attn of the same release as this file, which reads version ${VERSION}`;
    throw new PlanError('unsupported', 'plan.version', `is ${plan?.version}`, remedy);
  }
  const { features, limits, subgroupSize } = plan.requires;
  for (const feature of features.filter((feature) => !device.features.has(feature))) {
    const remedy = 'name it in requiredFeatures of requestDevice, or export a plan without --subgroups';
    throw new PlanError('unsupported', feature, 'is a feature that the plan needs and the device does not have', remedy);
  }
  for (const [name, least] of Object.entries(limits)) {
    if (!(device.limits[name] >= least)) {
      const remedy = `request the device with requiredLimits { ${name}: ${least} }, or export with --limit ${name}=${device.limits[name]}`;
      throw new PlanError('limit', name, `is ${device.limits[name]}, and the plan needs ${least}`, remedy);
    }
  }
  const { subgroupMinSize: min, subgroupMaxSize: max } = device.adapterInfo ?? {};
  if (subgroupSize && min && (min !== subgroupSize || max !== subgroupSize)) {
    const why = `subgroups have ${min} to ${max} lanes, and the plan needs ${subgroupSize}`;
    throw new PlanError('unsupported', 'subgroups', why, `export with --subgroups ${min}, or without it`);
  }
}

// Returns the bindings of the plan's tensors, by name, with offsets and sizes filled in.
function checkBuffers(device, plan, buffers) {
  const unknown = Object.keys(buffers).find((name) => buffers[name] && !plan.tensors.some((tensor) => tensor.name === name));
  const names = plan.tensors.map(({ name }) => name).join(', ');
  if (unknown) throw new PlanError('invalid', unknown, 'is not a tensor of this plan', `bind ${names}`);
  const bound = {};
  for (const { name, bytes, access, dtype, shape } of plan.tensors) {
    const given = buffers[name];
    const what = `${dtype} [${shape}], ${bytes} bytes`;
    if (!given) throw new PlanError('invalid', name, 'has no buffer', `bind a storage buffer for ${name}: ${what}`);
    const { buffer, offset = 0, size = buffer.size - offset } = given.buffer ? given : { buffer: given };
    const alignment = device.limits.minStorageBufferOffsetAlignment;
    if (!(buffer.usage & STORAGE)) throw new PlanError('invalid', name, 'lacks the usage STORAGE', 'create it with GPUBufferUsage.STORAGE');
    if (offset % alignment) throw new PlanError('invalid', name, `starts at byte ${offset}`, `start at a multiple of ${alignment}`);
    if (size < bytes) throw new PlanError('invalid', name, `has ${size} bytes from its offset on`, `bind ${what}`);
    for (const [other, shared] of Object.entries(bound)) {
      const isWritten = access === 'write' || shared.access === 'write';
      if (isWritten && shared.buffer === buffer) {
        const why = `shares a buffer with ${other}, and one of them is written, which WebGPU forbids`;
        throw new PlanError('invalid', name, why, 'give what is written a buffer of its own');
      }
    }
    bound[name] = { buffer, offset, size: Math.floor(size / 4) * 4, access };
  }
  return bound;
}

// Creates one buffer with the parameters of all dispatches; `slots` are their bindings.
function paramsBuffer(device, plan) {
  const stride = (bytes) => Math.ceil(bytes / 256) * 256;
  const starts = [];
  let size = 0;
  for (const { params } of plan.dispatches) {
    starts.push(size);
    size += stride(params.length);
  }
  const buffer = device.createBuffer({ label: 'attention params', size: Math.max(size, 256), usage: UNIFORM, mappedAtCreation: true });
  const bytes = new Uint8Array(buffer.getMappedRange());
  plan.dispatches.forEach(({ params }, index) => bytes.set(params, starts[index]));
  buffer.unmap();
  return { buffer, slots: plan.dispatches.map(({ params }, index) => ({ buffer, offset: starts[index], size: params.length })) };
}

const pipelines = new WeakMap(); // GPUDevice -> WGSL -> promise of { pipeline, layout }

// Compiles a kernel, or returns it as another plan of the device has compiled it.
function pipelineOf(device, plan, index) {
  if (!pipelines.has(device)) pipelines.set(device, new Map());
  const kept = pipelines.get(device);
  const { directives, wgsl } = plan.kernels[index];
  const code = directives + wgsl;
  if (!kept.has(code)) {
    const compiled = compile(device, plan, index, code);
    kept.set(code, compiled);
    compiled.catch(() => kept.delete(code));
  }
  return kept.get(code);
}

async function compile(device, plan, index, code) {
  const { name, entryPoint } = plan.kernels[index];
  const { bindings } = plan.dispatches.find(({ kernel }) => kernel === index);
  const entries = bindings.map(({ binding, type }) => ({ binding, visibility: COMPUTE, buffer: { type } }));
  device.pushErrorScope('validation'); // the pipeline has the error too, and no other handler should
  const layout = device.createBindGroupLayout({ label: name, entries });
  const module = device.createShaderModule({ label: name, code });
  device.popErrorScope().catch(() => {});
  try {
    const pipeline = await device.createComputePipelineAsync({
      label: name,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint },
    });
    return { pipeline, layout };
  } catch (error) {
    const { messages } = await module.getCompilationInfo();
    const found = messages.find(({ type }) => type === 'error');
    const why = found ? `line ${found.lineNum}: ${found.message}` : error.message;
    throw new PlanError('shader', name, `the browser refused the kernel: ${why}`, 'report it with the name of the browser and GPU');
  }
}
