"""Peers of `attn bench --compare`: PyTorch and ONNX Runtime.

    pip install numpy torch          attn bench --suite prefill --backend cpu --compare "python3 benches/peers/peer.py torch"
    pip install numpy onnx onnxruntime          ... --compare "python3 benches/peers/peer.py onnxruntime"
    pip install numpy onnx onnxruntime-webgpu   ... --compare "python3 benches/peers/peer.py onnxruntime-webgpu"

Reads requests and writes answers as lines of JSON; attn/src/bench/peer.rs describes both. A time is that of one call with its
arrays in place: tensors on the CPU for PyTorch, bound values for ONNX Runtime (for WebGPU the arrays go up and the answer
comes down, as with ours).
"""

import json
import sys
import time

import numpy as np


class Torch:
    def __init__(self, request):
        import torch

        torch.set_num_threads(request["threads"])
        self.torch = torch
        self.adapter = f"PyTorch {torch.__version__} CPU"
        self.op = "scaled_dot_product_attention"
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request["dtype"]]
        self.backward = request["backward"]
        load = lambda name: torch.from_numpy(np.load(request[name])).to(dtype).requires_grad_(self.backward)
        self.query, self.key, self.value = (load(name) for name in ("query", "key", "value"))
        _, heads, kv_heads, rows, keys, _ = request["shape"]
        self.options = {"enable_gqa": True} if heads != kv_heads else {}
        if request["window"] or (request["causal"] and rows != keys and rows > 1):
            # PyTorch's own causal is aligned to the first key; what it has no option for is a mask.
            distance = torch.arange(rows)[:, None] + (keys - rows) - torch.arange(keys)[None, :]
            self.options["attn_mask"] = (distance >= 0) & (distance < (request["window"] or keys))
        else:
            self.options["is_causal"] = request["causal"] and rows > 1

    def run(self):
        torch = self.torch
        attend = lambda: torch.nn.functional.scaled_dot_product_attention(self.query, self.key, self.value, **self.options)
        if not self.backward:
            with torch.no_grad():
                return attend()
        for tensor in (self.query, self.key, self.value):
            tensor.grad = None
        output = attend()
        output.backward(torch.ones_like(output))
        return output

    def output(self):
        return self.run().detach().float().numpy()


class OnnxRuntime:
    """MultiHeadAttention or, with grouped heads, GroupQueryAttention of com.microsoft: what ONNX Runtime makes of a model's attention."""

    def __init__(self, request, provider):
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper

        batch, heads, kv_heads, rows, keys, dim = request["shape"]
        if request["window"] or request["backward"]:
            raise ValueError("neither windows nor gradients")
        if request["dtype"] == "bf16" or (request["dtype"] == "f16" and provider == "CPUExecutionProvider"):
            raise ValueError(f"no {request['dtype']} here")
        kind, numpy = (TensorProto.FLOAT, np.float32) if request["dtype"] == "f32" else (TensorProto.FLOAT16, np.float16)
        load = lambda name: np.load(request[name]).astype(numpy)
        packed = lambda x: np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1))
        query, key, value = load("query"), load("key"), load("value")
        decode = rows < keys
        if decode or heads != kv_heads:
            if not (request["causal"] or rows == 1):
                raise ValueError("its grouped heads are always causal")
            # The last `rows` keys are new, those before them are the past: it copies nothing if past and present share a buffer.
            past = keys - rows
            self.feeds = {"query": packed(query), "key": packed(key[:, :, past:]), "value": packed(value[:, :, past:])}
            shared = {name: np.zeros((batch, kv_heads, keys, dim), numpy) for name in ("past_key", "past_value")}
            shared["past_key"][:, :, :past], shared["past_value"][:, :, :past] = key[:, :, :past], value[:, :, :past]
            self.feeds |= shared
            self.feeds["seqlens_k"] = np.full(batch, keys - 1, np.int32)
            self.feeds["total_sequence_length"] = np.array([keys], np.int32).reshape(1)
            self.op = "GroupQueryAttention"
            node = helper.make_node(self.op, list(self.feeds), ["output", "present_key", "present_value"], domain="com.microsoft",
                                    num_heads=heads, kv_num_heads=kv_heads)
            outputs = [("output", [batch, rows, heads * dim]), ("present_key", [batch, kv_heads, keys, dim]),
                       ("present_value", [batch, kv_heads, keys, dim])]
        else:
            self.feeds = {"query": packed(query), "key": packed(key), "value": packed(value)}
            self.op = "MultiHeadAttention"
            node = helper.make_node(self.op, list(self.feeds), ["output"], domain="com.microsoft", num_heads=heads,
                                    unidirectional=int(request["causal"]))
            outputs = [("output", [batch, rows, heads * dim])]
        kind_of = lambda x: TensorProto.INT32 if x.dtype == np.int32 else kind
        graph = helper.make_graph(
            [node], "attention",
            [helper.make_tensor_value_info(name, kind_of(x), x.shape) for name, x in self.feeds.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
        self.adapter = f"ONNX Runtime {onnxruntime.__version__} {provider.removesuffix('ExecutionProvider')}"
        if self.session.get_providers()[0] != provider:
            raise ValueError(f"{provider} is not there")
        self.binding = None
        if provider == "CPUExecutionProvider":
            values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in self.feeds.items()}
            self.binding = self.session.io_binding()
            for name, value in values.items():
                self.binding.bind_ortvalue_input(name, value)
            for name, shape in outputs:
                past = name.replace("present", "past")
                self.binding.bind_ortvalue_output(
                    name, values[past] if past in values and past != name
                    else onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, numpy)))
        self.shape = (batch, rows, heads, dim)

    def run(self):
        if self.binding is None:
            return self.session.run(["output"], self.feeds)[0]
        self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()[0]

    def output(self):
        result = self.run()
        result = result if isinstance(result, np.ndarray) else result.numpy()
        return np.ascontiguousarray(result.reshape(self.shape).transpose(0, 2, 1, 3).astype(np.float32))


PEERS = {
    "torch": Torch,
    "onnxruntime": lambda request: OnnxRuntime(request, "CPUExecutionProvider"),
    "onnxruntime-webgpu": lambda request: OnnxRuntime(request, "WebGpuExecutionProvider"),
}


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in PEERS:
        sys.exit(__doc__ + "\nknown: " + " ".join(PEERS))
    peer = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            try:
                known = lambda term: term == "causal=bottom-right" or (term.startswith("window=") and term.endswith(",0"))
                if unknown := [term for term in request["terms"] if not known(term)]:
                    raise ValueError("no " + ", ".join(unknown))
                peer = PEERS[sys.argv[1]](request)
                np.save(request["output"], peer.output())
                answer = {"ok": True, "adapter": peer.adapter, "op": peer.op}
            except Exception as error:  # what it is not able to do, whatever it raises, is an answer
                answer = {"ok": False, "why": f"{type(error).__name__}: {error}"}
        else:
            times = []
            for _ in range(request["times"]):
                started = time.perf_counter()
                peer.run()
                times.append((time.perf_counter() - started) * 1e3)
            answer = {"ms": times}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
