// Runs exported plans on Dawn by web/run-plan.mjs, for `cargo xtask export`. Line by line: reads {"plan", "tensors": {name: [bytes]}} from
// standard input and writes {"tensors"} or {"error"} to standard output. The first line that it writes describes the adapter.
//
// A plan without features runs on a device with WebGPU's default limits, others on one with what they require.
import { createInterface } from 'node:readline';
import { create, globals } from 'webgpu';
import { PlanError, preparePlan } from '../../web/run-plan.mjs';

Object.assign(globalThis, globals);
const gpu = create([]);
const devices = new Map();

async function deviceFor({ features, limits }) {
  const beyond = Object.entries(limits).filter(([name, least]) => features.length > 0 && least > defaults.limits[name]);
  const descriptor = { requiredFeatures: features, requiredLimits: Object.fromEntries(beyond) };
  const key = JSON.stringify(descriptor);
  if (!devices.has(key)) devices.set(key, await (await gpu.requestAdapter()).requestDevice(descriptor));
  return devices.get(key);
}

function bufferOf(device, bytes, usage) {
  const buffer = device.createBuffer({ size: Math.max(16, Math.ceil(bytes.length / 4) * 4), usage, mappedAtCreation: true });
  new Uint8Array(buffer.getMappedRange()).set(bytes);
  buffer.unmap();
  return buffer;
}

async function run({ plan, tensors }) {
  const device = await deviceFor(plan.requires);
  const prepared = await preparePlan(device, plan);
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const buffers = {};
  for (const { name, bytes } of plan.tensors) buffers[name] = bufferOf(device, tensors[name] ?? new Uint8Array(bytes), STORAGE | COPY_SRC);
  const written = plan.tensors.filter(({ access }) => access === 'write');
  const staging = written.map(({ bytes }) => device.createBuffer({ size: bytes, usage: MAP_READ | COPY_DST }));
  device.pushErrorScope('validation');
  const encoder = device.createCommandEncoder();
  prepared.bind(buffers).record(encoder);
  written.forEach(({ name, bytes }, index) => encoder.copyBufferToBuffer(buffers[name], 0, staging[index], 0, bytes));
  device.queue.submit([encoder.finish()]);
  const error = await device.popErrorScope();
  if (error) throw new Error(error.message);
  const results = {};
  for (const [index, { name }] of written.entries()) {
    await staging[index].mapAsync(GPUMapMode.READ);
    results[name] = [...new Uint8Array(staging[index].getMappedRange())];
  }
  for (const buffer of [...Object.values(buffers), ...staging]) buffer.destroy();
  prepared.destroy();
  return results;
}

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const adapter = await gpu.requestAdapter();
if (!adapter) {
  say({ error: 'Dawn found no adapter' });
  process.exit(1);
}
const defaults = await adapter.requestDevice();
const { device, subgroupMinSize } = adapter.info;
say({ name: device, subgroupSize: adapter.features.has('subgroups') ? subgroupMinSize : 0 });
for await (const line of createInterface({ input: process.stdin })) {
  try {
    say({ tensors: await run(JSON.parse(line)) });
  } catch (error) {
    say({ error: error instanceof PlanError ? `${error.kind}: ${error.message}` : String(error.stack) });
  }
}
process.exit(0); // node does not exit by itself while there is a gpu
