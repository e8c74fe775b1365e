"""Runs a plan that `attn export --json` wrote, on wgpu-py, and compares it with numpy.

    pip install -r examples/python/requirements.txt
    attn export --shape 2,8,2,100,300,64 --causal --lse --json > plan.json
    python examples/python/run_plan.py plan.json

`Attention` is all that a Python program needs. wgpu-py is wgpu-native, whose WGSL has no `enable subgroups;`: export without --subgroups.
"""

import json
import sys

import numpy as np
import wgpu


class Attention:
    """Plan on a device. `record` binds buffers by name and records into the caller's encoder."""

    def __init__(self, device, plan):
        if plan["version"] != 1:
            raise ValueError(f"this file runs version 1 of the format, not {plan['version']}")
        self.device, self.plan = device, plan
        usage = wgpu.BufferUsage.STORAGE
        self.scratch = [device.create_buffer(size=size, usage=usage) for size in plan["scratch"]]
        self.kernels = [self._compile(index) for index in range(len(plan["kernels"]))]
        uniform = wgpu.BufferUsage.UNIFORM
        self.params = [device.create_buffer_with_data(data=bytes(each["params"]), usage=uniform) for each in plan["dispatches"]]

    def _compile(self, index):
        kernel = self.plan["kernels"][index]
        bindings = next(each["bindings"] for each in self.plan["dispatches"] if each["kernel"] == index)
        entries = [
            {"binding": each["binding"], "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": each["type"]}} for each in bindings
        ]
        layout = self.device.create_bind_group_layout(entries=entries)
        pipeline = self.device.create_compute_pipeline(
            layout=self.device.create_pipeline_layout(bind_group_layouts=[layout]),
            compute={"module": self.device.create_shader_module(code=kernel["wgsl"]), "entry_point": kernel["entryPoint"]},
        )
        return pipeline, layout

    def record(self, encoder, buffers):
        """Records the plan. `buffers` has a storage buffer for each of the plan's tensors."""
        compute = encoder.begin_compute_pass()
        for dispatch, params in zip(self.plan["dispatches"], self.params):
            pipeline, layout = self.kernels[dispatch["kernel"]]
            entries = []
            for each in dispatch["bindings"]:
                name = each["buffer"]
                buffer = params if name == "params" else self.scratch[name] if isinstance(name, int) else buffers[name]
                size = each["size"] if each["size"] is not None else buffer.size - each["offset"]
                resource = {"buffer": buffer, "offset": each["offset"], "size": size}
                entries.append({"binding": each["binding"], "resource": resource})
            compute.set_pipeline(pipeline)
            compute.set_bind_group(0, self.device.create_bind_group(layout=layout, entries=entries))
            compute.dispatch_workgroups(*dispatch["grid"])
        compute.end()


def causal_attention(query, key, value):
    """The same in numpy, f64. The last row is aligned with the last key."""
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[3])
    rows, keys = scores.shape[2:]
    scores[:, :, np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    return weights / weights.sum(axis=3, keepdims=True) @ value


def main(path):
    with open(path) as file:
        plan = json.load(file)
    limits = {name: least for name, least in plan["requires"]["limits"].items()}
    adapter = wgpu.gpu.request_adapter_sync()
    device = adapter.request_device_sync(required_features=plan["requires"]["features"])
    short = [name for name, least in limits.items() if device.limits[limit_name(name)] < least]
    if short:
        raise SystemExit(f"the device has too little of {', '.join(short)}: request it with more, or export with --limit")

    random = np.random.default_rng(1)
    arrays = {t["name"]: random.standard_normal(t["shape"], dtype=np.float32) for t in plan["tensors"] if t["access"] == "read"}
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
    buffers = {name: device.create_buffer_with_data(data=array, usage=usage) for name, array in arrays.items()}
    for tensor in plan["tensors"]:
        if tensor["access"] == "write":
            buffers[tensor["name"]] = device.create_buffer(size=tensor["bytes"], usage=usage)

    attention = Attention(device, plan)
    encoder = device.create_command_encoder()
    attention.record(encoder, buffers)
    device.queue.submit([encoder.finish()])

    got = np.frombuffer(device.queue.read_buffer(buffers["output"]), dtype=np.float32)
    expected = causal_attention(**arrays)
    error = np.abs(got.reshape(expected.shape) - expected).max()
    print(f"{adapter.info['device']}: {plan['summary'].split(',')[0]}: largest error {error:.1e} against numpy")
    if not error < 1e-5:
        raise SystemExit("the answer is wrong")


def limit_name(name):
    """wgpu-py writes maxBufferSize as max-buffer-size."""
    return "".join("-" + letter.lower() if letter.isupper() else letter for letter in name)


if __name__ == "__main__":
    main(*sys.argv[1:])
