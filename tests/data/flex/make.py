"""Makes the case files of this folder: every text of examples/terms on PyTorch's FlexAttention in float64 on the CPU.

    python3 tests/data/flex/make.py        needs torch and numpy

Each text stands beside a score_mod and a mask_mod of the same meaning, written as users of FlexAttention write them.
The public flex_attention refuses gradients on a CPU, though its eager backward pass runs there; only that check is
lifted. Its outputs, statistics and gradients are compared with autograd through an explicit softmax before they are
stored.
"""
import glob
import hashlib
import json
import math
import os
import re
import struct
import warnings

import numpy as np
import torch
import torch.nn.attention.flex_attention as flex

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
flex._validate_device = lambda *arguments: None
HERE = os.path.dirname(os.path.abspath(__file__))
TERMS = os.path.join(HERE, "../../../examples/terms")
ST = {"float32": "F32", "int64": "I64", "int32": "I32"}


def term(score=None, mask=None, q=40, k=None, offset=None, heads=2, tables=None, amplitude=1.0):
    """One case; without `k`, self-attention, and without `offset`, rows at the end of the keys."""
    k = k or q
    return dict(score=score, mask=mask, q=q, k=k, offset=k - q if offset is None else offset, heads=heads, tables=tables or {}, amplitude=amplitude)


def slopes(heads):
    return np.array([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], np.float32)


def documents(tokens, lengths):
    """Ids that grow along each item, of documents of these lengths."""
    rows = [np.repeat(np.arange(len(item)) + 7 * at, item)[:tokens] for at, item in enumerate(lengths)]
    return np.stack(rows).astype(np.int32).reshape(-1)


def ancestors(rows):
    """Bits of the ancestors of each draft, itself included, and its words as a table of u32."""
    sees = np.zeros((rows, rows), bool)
    for row in range(rows):
        if row:
            sees[row] = sees[row * 7 % 11 % row]
        sees[row, row] = True
    words = -(-rows // 32)
    packed = np.zeros((rows, words), np.int64)
    for row, column in zip(*np.nonzero(sees)):
        packed[row, column // 32] |= 1 << (column % 32)
    return torch.tensor(sees), packed.reshape(-1)


def t5_bucket(distance):
    """Bucket of key - query as transformers' T5Attention._relative_position_bucket has it, bidirectional."""
    n = torch.abs(distance)
    far = 8 + (torch.log(torch.clamp(n, min=1).double() / 8) / math.log(128 / 8) * 8 + 1e-9).long()
    far = torch.minimum(far, torch.full_like(far, 15))
    return (distance > 0).long() * 16 + torch.where(n < 8, n, far)


def swin(at, size):
    """Window and region of a place along an axis after the cyclic shift by 2, windows of 4."""
    shifted = (at + size - 2) % size
    region = torch.where(shifted < size - 2, torch.zeros_like(at), torch.ones_like(at))
    return (shifted // 4) * 2 + region


def cases():
    """Name of each text -> its case. `t` holds the tables and `o` the position of row 0."""
    near = lambda q, k, size: (k - torch.clamp(q, 2, size - 3)).abs() <= 2
    docs, prefix_docs, tree, tree_words = documents(69, [[23, 31, 15], [1, 50, 18]]), documents(71, [[40, 31], [9, 33, 29]]), *ancestors(37)
    in_prefix = (np.arange(2 * 71) % 37 < 11).astype(np.int64)
    return {
        "causal": term(mask=lambda t, o: lambda b, h, q, k: k <= q + o, q=41, k=67, offset=-9),
        "window": term(mask=lambda t, o: lambda b, h, q, k: (k <= q + o) & (q + o - k < 64), q=45, k=97),
        "window_sinks": term(mask=lambda t, o: lambda b, h, q, k: (k <= q + o) & ((q + o - k < 64) | (k < 4)), q=39, k=101),
        "chunked": term(mask=lambda t, o: lambda b, h, q, k: (k <= q + o) & (k // 48 == (q + o) // 48), q=70, k=100),
        "dilated": term(mask=lambda t, o: lambda b, h, q, k: (k <= q + o) & ((q + o - k) % 4 == 0), q=37, k=53, offset=-5),
        "prefix_lm": term(
            mask=lambda t, o: lambda b, h, q, k: (k <= q + o) | (k < t["prefix"][b]),
            q=65, offset=-3, tables={"prefix": ("i32", np.array([0, 20], np.int32))},
        ),
        "documents": term(
            mask=lambda t, o: lambda b, h, q, k: t["segment_ids"][b * 69 + q] == t["segment_ids"][b * 69 + k],
            q=69, tables={"segment_ids": ("i32", docs)},
        ),
        "prefix_lm_documents": term(
            mask=lambda t, o: lambda b, h, q, k: (t["segment_ids"][b * 71 + q] == t["segment_ids"][b * 71 + k])
            & ((k <= q) | (t["in_prefix"][b * 71 + k] != 0)),
            q=71, tables={"segment_ids": ("i32", prefix_docs), "in_prefix": ("u32", in_prefix)},
        ),
        "block_diffusion": term(
            # The three parts of BD3-LM's mask, for halves of 41 tokens.
            mask=lambda t, o: lambda b, h, q, k: ((q % 41 // 16 == k % 41 // 16) & ((q >= 41) == (k >= 41)))
            | ((q % 41 // 16 > k % 41 // 16) & (k >= 41) & (q < 41))
            | ((q % 41 // 16 >= k % 41 // 16) & (k >= 41) & (q >= 41)),
            q=82,
        ),
        "neighbourhood_2d": term(mask=lambda t, o: lambda b, h, q, k: near(q // 16, k // 16, 6) & near(q % 16, k % 16, 16), q=96),
        "swin_shifted": term(
            mask=lambda t, o: lambda b, h, q, k: (swin(q // 16, 8) == swin(k // 16, 8)) & (swin(q % 16, 16) == swin(k % 16, 16)), q=128
        ),
        "tree_mask": term(
            mask=lambda t, o: lambda b, h, q, k: (k < 53) | tree[q, torch.clamp(k - 53, min=0)],
            q=37, k=90, tables={"ancestors": ("u32", tree_words)},
        ),
        "alibi": term(
            score=lambda t, o: lambda s, b, h, q, k: s - t["slopes"][h] * (q + o - k).abs(),
            q=43, k=61, heads=4, tables={"slopes": ("f32", slopes(4))},
        ),
        "relative_bias_t5": term(
            score=lambda t, o: lambda s, b, h, q, k: s + t["bias"].view(4, 32)[h, t5_bucket(k - (q + o))],
            q=29, k=165, offset=110, heads=4, tables={"bias": ("f32", np.sin(0.7 * np.arange(128)).astype(np.float32))},
        ),
        "softcap": term(score=lambda t, o: lambda s, b, h, q, k: 30.0 * torch.tanh(s / 30.0), q=35, k=47, amplitude=4.0),
        "tanh_gate": term(
            score=lambda t, o: lambda s, b, h, q, k: s * torch.tanh(t["gates"][h]),
            q=35, k=50, heads=4, tables={"gates": ("f32", np.array([0.0, 0.5, -1.0, 2.0], np.float32))},
        ),
        "head_temperature": term(
            score=lambda t, o: lambda s, b, h, q, k: s * t["temperatures"][h],
            q=33, k=49, heads=4, tables={"temperatures": ("f32", np.array([0.5, 1.0, 2.0, 4.0], np.float32))},
        ),
        "distance_decay": term(
            score=lambda t, o: lambda s, b, h, q, k: s + t["log_rates"][h] * (q + o - k),
            mask=lambda t, o: lambda b, h, q, k: q + o >= k,
            q=40, k=59, offset=-6, heads=4,
            tables={"log_rates": ("f32", np.log(1 - 2.0 ** (-5 - np.arange(4))).astype(np.float32))},
        ),
        "relu": term(score=lambda t, o: lambda s, b, h, q, k: torch.relu(s), q=34, k=51),
    }


def compute(case, arrays, scale, dtype):
    """Outputs, lse and gradients of flex_attention; checked against autograd through an explicit softmax."""
    torch._dynamo.reset()
    tables = {name: torch.tensor(data).to(dtype) if ty == "f32" else torch.tensor(data).long() for name, (ty, data) in case["tables"].items()}
    q, k, v = (torch.tensor(arrays[name]).to(dtype).requires_grad_(True) for name in "qkv")
    dout = torch.tensor(arrays["dout"]).to(dtype)
    score_mod = case["score"] and case["score"](tables, case["offset"])
    mask_mod = case["mask"] and case["mask"](tables, case["offset"])
    sizes = (q.size(0), q.size(1), q.size(2), k.size(2))
    block_mask = mask_mod and flex.create_block_mask(mask_mod, *sizes, device="cpu", BLOCK_SIZE=128)
    out, lse = flex.flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale, enable_gqa=True, return_lse=True)
    names = ["o", "lse", "dq", "dk", "dv"]
    found = dict(zip(names, [out, lse, *torch.autograd.grad(out, [q, k, v], dout)]))

    b, h, i, j = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    group = sizes[1] // k.size(1)
    wide = lambda x: x.repeat_interleave(group, dim=1)
    scores = scale * q @ wide(k).transpose(-1, -2)
    scores = score_mod(scores, b, h, i, j) if score_mod else scores
    hidden = ~mask_mod(b, h, i, j) if mask_mod else torch.zeros(sizes, dtype=torch.bool)
    empty = hidden.all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf).masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    plain = weights @ wide(v)
    for name, expected in zip(["o", "dq", "dk", "dv"], [plain, *torch.autograd.grad(plain, [q, k, v], dout)]):
        worst = (found[name] - expected).abs().max().item()
        assert dtype != torch.float64 or worst < 1e-12, (name, worst)
    return {name: found[name].detach().to(torch.float32).numpy() for name in names}


def write(path, tensors, metadata):
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name in names:
        data = tensors[name]
        header[name] = {"dtype": ST[str(data.dtype)], "shape": list(data.shape), "data_offsets": [end, end + data.nbytes]}
        end += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())


def make(name, case):
    with open(os.path.join(TERMS, name + ".wgsl")) as file:
        text = file.read()
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    heads, dim, dim_v = case["heads"], 4, 3
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    arrays = {
        "q": normal(2, heads, case["q"], dim) * np.float32(case["amplitude"]),
        "k": normal(2, heads // 2, case["k"], dim) * np.float32(case["amplitude"]),
        "v": normal(2, heads // 2, case["k"], dim_v),
        "dout": normal(2, heads, case["q"], dim_v),
    }
    scale = float(np.float32(0.5))
    expected, rough = compute(case, arrays, scale, torch.float64), compute(case, arrays, scale, torch.float32)
    features = ["flex", "user_term", "gqa", "backward"] + ["score"] * bool(case["score"]) + ["mask"] * bool(case["mask"])
    features += ["fully_masked_rows"] * bool(np.isneginf(expected["lse"]).any())
    metadata = {
        "format": "attnconf/1", "suite": "flex", "case": "flex_term_" + name, "op": "flex", "dtype": "F32",
        "source": f"PyTorch {torch.__version__.split('+')[0]} flex_attention CPU float64 (BSD-3-Clause)",
        "features": ",".join(features), "attr.scale": str(scale), "attr.score_mod": "none", "attr.mask_mod": "none",
        "attr.q_offset": str(case["offset"]), "attr.term": text,
        "attr.tables": ",".join(f"{table}:{ty}" for table, (ty, _) in case["tables"].items()), "tol.rtol": "1e-5",
        "note": f"examples/terms/{name}.wgsl; gradients by flex_attention's eager backward pass, equal to autograd through an explicit softmax",
    }
    for output, values in expected.items():
        finite = np.isfinite(values)
        error = np.abs(rough[output][finite].astype(np.float64) - values[finite]).max()
        floor = (2e-5 if output.startswith("d") else 1e-5) * max(np.abs(values[finite]).max(), 1e-3)
        metadata["tol." + output] = "%.3g" % max(8 * error, floor)
    tensors = {"in." + key: data for key, data in arrays.items()} | {"out." + key: data for key, data in expected.items()}
    tensors |= {"in." + table: data for table, (_, data) in case["tables"].items()}
    write(os.path.join(HERE, f"flex_term_{name}.safetensors"), tensors, metadata)
    return tensors, metadata


def main():
    all_cases = cases()
    texts = sorted(re.sub(r"\.wgsl$", "", os.path.basename(path)) for path in glob.glob(os.path.join(TERMS, "*.wgsl")))
    assert texts == sorted(all_cases), set(texts) ^ set(all_cases)
    lines = ["file\top\tfeatures\tbytes\tsha256_16\tinputs\toutputs\tattributes"]
    for name, case in sorted(all_cases.items()):
        tensors, metadata = make(name, case)
        path = os.path.join(HERE, f"flex_term_{name}.safetensors")
        with open(path, "rb") as file:
            data = file.read()
        kind = lambda start: " ".join(f"{n[len(start):]}={'x'.join(map(str, x.shape))}:{x.dtype}" for n, x in sorted(tensors.items()) if n.startswith(start))
        short = " ".join(f"{key[5:]}={value}" for key, value in sorted(metadata.items()) if key.startswith("attr.") and len(value) < 60)
        digest = hashlib.sha256(data).hexdigest()[:16]
        lines.append("\t".join([os.path.basename(path), "flex", metadata["features"], str(len(data)), digest, kind("in."), kind("out."), short]))
    with open(os.path.join(HERE, "INDEX.tsv"), "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
