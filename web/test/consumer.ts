// Uses every function of the package, for the compiler: `tsc --noEmit`. Nothing of it runs.
import { AttentionError, attention, backward, bench, createCache, createEngine, explain, plan, verify, warmUp } from 'wgpu-attention';
import type { AttentionPlan, AttentionResult, Engine, ExportedPlan, Gradients, Problem, VerifyReport } from 'wgpu-attention';
import { preparePlan } from 'wgpu-attention/run-plan';

export async function everything(device: GPUDevice, buffer: GPUBuffer): Promise<number> {
  const engine: Engine = await createEngine({ device, onProgress: ({ stage, share }) => console.log(stage, share) });
  const problem: Problem = {
    shape: { numHeads: 2, seqLenQ: 4, headDim: 8 },
    causal: 'top-left',
    window: { left: 3 },
    mask: { data: new Uint8Array(16), shape: [4, 4] },
    tables: { slopes: Float32Array.of(1, 2) },
    score: 'fn score(x: f32, at: Pair) -> f32 { return x + slopes[at.head]; }',
  };
  const tensors = { query: new Float32Array(64), key: new Uint16Array(64), value: new Float32Array(64) };
  const { signal } = new AbortController();
  const result: AttentionResult = await attention(engine, { ...problem, ...tensors, lse: true, signal });
  const gradients: Gradients = await backward(engine, { ...problem, ...tensors, dOutput: result.output, want: ['query', 'bias'] });
  await warmUp(engine, problem);
  const { visible, density } = await explain(engine, problem);
  const planned: AttentionPlan = await plan(engine, problem);
  const exported: ExportedPlan = planned.exported;
  await preparePlan(device, exported);
  const bound = planned.bind({ query: buffer, key: buffer, value: { buffer, offset: 256 }, output: buffer });
  bound.encode(device.createCommandEncoder());
  const cache = await createCache(engine, { numHeads: 2, headDim: 8, stored: 'q8', capacity: 100 });
  const { output } = await cache.step({ ...tensors, tokens: 1 });
  const report: VerifyReport = await verify(engine, { seed: 1, random: 3 });
  const { median } = await bench(engine, { ...problem, seconds: 0.5 });
  engine.destroy();
  // @ts-expect-error `causal` names its alignment
  await attention(engine, { ...problem, ...tensors, causal: true });
  // @ts-expect-error no such gradient
  await backward(engine, { ...problem, ...tensors, dOutput: result.output, want: ['mask'] });
  return median + density + visible.length + output.length + report.failed + (gradients.query?.length ?? 0);
}

export function kindOf(error: unknown): string {
  if (!(error instanceof AttentionError)) return 'other';
  const kind: 'invalid' | 'unsupported' | 'limit' | 'no-adapter' | 'device' | 'lost' | 'shader' | 'miscomputed' | 'cancelled' = error.kind;
  return `${kind} ${error.argument ?? ''} ${error.remedy ?? ''}`;
}
