"""Makes the files of data/: attention layers of tiny random models, run by Hugging Face's transformers in float64.

    python3 examples/models/make.py        needs torch, transformers and safetensors; downloads nothing

A model is built from a configuration in code. Its own forward pass makes masks, angles and cache: a prompt, then eight
tokens one by one. A hook replaces what its attention layer reads by hidden states that bf16 holds exactly, as it holds
the weights; another keeps what the layer returns, after its output projection. Wherever transformers asks for float32
it gets float64, and an operation that returns anything narrower is an error.
"""
import os

import safetensors.torch
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, DeepseekV3Config, DeepseekV3Model, DynamicCache, Gemma3TextConfig, Gemma3TextModel
from transformers import GptOssConfig, GptOssModel, Llama4TextConfig, Llama4TextModel, LlamaConfig, LlamaModel, MistralConfig, MistralModel
from transformers import Phi3Config, Phi3Model, Qwen3Config, Qwen3Model

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
DECODED = 8
SMALL = dict(vocab_size=8, hidden_size=48, intermediate_size=8, num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = dict(**SMALL, num_key_value_heads=2, head_dim=16)
HEADS = ["num_attention_heads", "num_key_value_heads"]


class NothingNarrow(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype in (F32, torch.float16, torch.bfloat16, torch.complex64):
                raise TypeError(f"{func} returns {tensor.dtype}")
        return result


F32 = torch.float32
torch.set_default_dtype(torch.float64)
torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double


def bf16(*shape, size=1.0):
    """Random normal float64 that bf16 holds exactly."""
    return (torch.randn(*shape) * size).bfloat16().double()


def draw(attention):
    """Weights that keep scores at a few units, so that neither all keys nor one alone count."""
    for name, weight in attention.named_parameters():
        if weight.ndim == 2:
            narrow = any(part in name for part in ("v_proj", "o_proj", "value", "dense", "kv_b"))
            weight.data = bf16(*weight.shape, size=(1.0 if narrow else 1.3) / weight.shape[1] ** 0.5)
        elif "norm" in name:
            around = 0.0 if type(attention).__name__.startswith("Gemma") else 1.0
            weight.data = (around + bf16(*weight.shape, size=0.3)).bfloat16().double()
        else:
            weight.data = bf16(*weight.shape, size=1.0 if "sinks" in name else 0.3)


def answers(model, attentions, steps, caches=True, **inputs):
    """What each attention layer returns for the hidden states of each step."""
    found, now = [[] for _ in attentions], {}

    def reads(module, args, kwargs):
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": now["hidden"]}
        return (now["hidden"], *args[1:]), kwargs

    hooks = []
    for (module, projection), to in zip(attentions, found):
        hooks.append(module.register_forward_pre_hook(reads, with_kwargs=True))
        hooks.append(projection.register_forward_hook(lambda module, args, result, to=to: to.append(result)))
    cached = dict(cache=DynamicCache(config=model.config), use_cache=True) if caches else {}
    with torch.no_grad(), NothingNarrow():
        for hidden in steps:
            now["hidden"] = hidden
            model(inputs_embeds=hidden, **cached, **inputs)
    [hook.remove() for hook in hooks]
    return [torch.cat(parts, 1) for parts in found]


def store(name, attention, prefix, hidden, output, attributes):
    tensors = {prefix + name: weight.data.bfloat16() for name, weight in attention.named_parameters() if "LayerNorm" not in name}
    text = lambda value: ",".join(map(text, value)) if isinstance(value, list) else str(int(value) if isinstance(value, bool) else value)
    attributes = {key: text(value) for key, value in attributes.items() if value is not None}
    attributes["source"] = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, {type(attention).__name__}"
    path = os.path.join(DATA, name + ".safetensors")
    safetensors.torch.save_file({**tensors, "hidden": hidden.bfloat16(), "output": output}, path, attributes)
    print(f"{os.path.getsize(path):>7} {name}: largest output {output.abs().max():.2f}, rms {output.pow(2).mean().sqrt():.2f}")


def decoder(kind, config, names, prompt, attributes):
    """A file for each of `names`, the layers of a model. `attributes` returns those of a layer, beside the heads."""
    torch.manual_seed(len(kind.__name__) + prompt)
    config._attn_implementation = config._experts_implementation = "eager"
    model = kind(config).double().eval()
    modules = [layer.self_attn for layer in model.layers]
    [draw(module) for module in modules]
    hidden = bf16(1, prompt + DECODED, config.hidden_size)
    steps = hidden.split([prompt] + [1] * DECODED, 1)
    outputs = answers(model, [(module, module.o_proj) for module in modules], steps)
    for layer, (name, module, output) in enumerate(zip(names, modules, outputs)):
        own = attributes(layer) if callable(attributes) else attributes
        heads = {key: getattr(config, key) for key in HEADS}
        store(name, module, f"model.layers.{layer}.self_attn.", hidden[0], output[0], {"prompt": prompt, "layer": layer, **heads, **own})


def rope(parameters, *names):
    return {name: parameters[name] for name in ("rope_theta", *names)}


def llama3():
    parameters = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    config = LlamaConfig(**GROUPED, num_hidden_layers=1, max_position_embeddings=512, rope_parameters=parameters)
    scaling = rope(parameters, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    decoder(LlamaModel, config, ["llama3"], 27, scaling)


def mistral():
    parameters = dict(rope_type="default", rope_theta=10000.0)
    config = MistralConfig(**GROUPED, num_hidden_layers=1, sliding_window=7, rope_parameters=parameters)
    decoder(MistralModel, config, ["mistral"], 29, dict(**rope(parameters), sliding_window=7))


def qwen3():
    parameters = dict(rope_type="default", rope_theta=1000000.0)
    config = Qwen3Config(**GROUPED, num_hidden_layers=1, rope_parameters=parameters, rms_norm_eps=1e-3)
    decoder(Qwen3Model, config, ["qwen3"], 23, dict(**rope(parameters), rms_norm_eps=config.rms_norm_eps))


def gemma3():
    kinds = ["sliding_attention", "full_attention"]
    parameters = dict(
        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
        full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
    )
    config = Gemma3TextConfig(
        **GROUPED, num_hidden_layers=2, layer_types=kinds, sliding_window=9, query_pre_attn_scalar=24, rms_norm_eps=1e-3, rope_parameters=parameters
    )

    def attributes(layer):
        own = parameters[kinds[layer]]
        window = config.sliding_window if layer == 0 else None
        return dict(**rope(own), factor=own.get("factor", 1.0), sliding_window=window, query_pre_attn_scalar=24, rms_norm_eps=config.rms_norm_eps)

    decoder(Gemma3TextModel, config, ["gemma3_sliding", "gemma3_full"], 31, attributes)


def gpt_oss():
    parameters = dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=8.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=64)
    kinds = ["sliding_attention", "full_attention"]
    config = GptOssConfig(
        **GROUPED, num_hidden_layers=2, layer_types=kinds, sliding_window=8, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=256, rope_parameters=parameters
    )
    scaling = rope(parameters, "factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
    decoder(GptOssModel, config, ["gpt_oss_sliding", "gpt_oss_full"], 25, lambda layer: dict(**scaling, sliding_window=None if layer else 8))


def phi3():
    short = [1.0, 1.1, 1.3, 1.7, 2.1, 2.9]
    parameters = dict(
        rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, short_factor=short, long_factor=[2 * x for x in short], original_max_position_embeddings=64
    )
    config = Phi3Config(**{**GROUPED, "hidden_size": 64}, num_hidden_layers=1, max_position_embeddings=256, original_max_position_embeddings=64, rope_parameters=parameters)
    scaling = rope(parameters, "partial_rotary_factor", "short_factor", "original_max_position_embeddings")
    decoder(Phi3Model, config, ["phi3"], 26, dict(**scaling, head_dim=16, max_position_embeddings=256))


def llama4():
    parameters = dict(rope_type="default", rope_theta=500000.0)
    config = Llama4TextConfig(
        **GROUPED,
        intermediate_size_mlp=8,
        num_hidden_layers=2,
        no_rope_layers=[1, 0],
        moe_layers=[],
        attention_chunk_size=8,
        floor_scale=4,
        attn_scale=0.7,
        rms_norm_eps=1e-3,
        rope_parameters=parameters,
    )
    chunked = dict(**rope(parameters), attention_chunk_size=8, rms_norm_eps=config.rms_norm_eps)
    decoder(Llama4TextModel, config, ["llama4_chunked", "llama4_nope"], 21, lambda layer: dict(floor_scale=4, attn_scale=0.7) if layer else chunked)


def deepseek_v3():
    parameters = dict(
        rope_type="yarn", rope_theta=10000.0, factor=40.0, beta_fast=8.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.7, original_max_position_embeddings=64
    )
    sizes = dict(qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, kv_lora_rank=24, q_lora_rank=20)
    config = DeepseekV3Config(
        **SMALL,
        **sizes,
        num_key_value_heads=4,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        n_routed_experts=8,
        moe_intermediate_size=8,
        num_mtp_layers=0,
        max_position_embeddings=2560,
        rope_parameters=parameters,
    )
    scaling = rope(parameters, "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings")
    widths = {name: sizes[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")}
    decoder(DeepseekV3Model, config, ["deepseek_v3"], 24, dict(**scaling, **widths, rms_norm_eps=1e-6))


def bert():
    """The encoder with two sentences, one of them padded; then the same model as a decoder."""
    lengths, prompt = [19, 11], 22
    for name in ("bert", "bert_decoder"):
        torch.manual_seed(len(name))
        is_decoder = name == "bert_decoder"
        config = BertConfig(**SMALL, num_hidden_layers=1, is_decoder=is_decoder)
        config._attn_implementation = "eager"
        model = BertModel(config, add_pooling_layer=False).double().eval()
        attention = model.encoder.layer[0].attention
        draw(attention)
        layers = [(getattr(attention, "self"), attention.output.dense)]
        if is_decoder:
            hidden = bf16(1, prompt + DECODED, 48)
            [output] = answers(model, layers, hidden.split([prompt] + [1] * DECODED, 1))
            hidden, output, attributes = hidden[0], output[0], dict(prompt=prompt)
        else:
            hidden = bf16(2, max(lengths), 48)
            mask = torch.tensor([[int(at < length) for at in range(max(lengths))] for length in lengths])
            [output] = answers(model, layers, [hidden], caches=False, attention_mask=mask)
            attributes = dict(prompt=max(lengths), lengths=lengths)
        store(name, attention, "bert.encoder.layer.0.attention.", hidden, output, dict(**attributes, layer=0, num_attention_heads=4))


for make in (llama3, mistral, qwen3, gemma3, gpt_oss, phi3, bert, llama4, deepseek_v3):
    make()
