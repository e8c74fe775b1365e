// Defines: is_shown: the element-wise part of visibility; score_of: that, and softcap and biases on a scaled dot product.
// Expects: params, table, bias_at, mask_at; switches is_modified, softcap_first, softcap_last, has_bias, alibi_signed, alibi_symmetric,
//          has_relative_bias, has_documents, has_mask: constant in special variants, flags in general ones.
// Twin: src/cpu/naive.rs has the formulas.

struct Scored {
    score: f32,
    visible: bool,
}

// tanh without overflow for any argument and without cancellation near 0; NaN stays NaN.
fn tanh_exact(x: f32) -> f32 {
    let t = exp(-2.0 * abs(x));
    let far = (1.0 - t) / (1.0 + t);
    let square = x * x;
    let near = x + x * square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488)));
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.3);
}

// The part of visibility that is not arithmetic: documents and the mask.
fn is_shown(item: Item, head: u32, row: u32, key: u32) -> bool {
    var shown = true;
    if (has_documents()) {
        let own = table(params.table_documents_q + item.batch * params.seq_len_q + row);
        shown = own == table(params.table_documents_kv + item.batch * params.seq_len_kv + key);
    }
    if (has_mask()) {
        shown = shown && mask_at(item.batch * params.mask_strides.x + head * params.mask_strides.y + row * params.mask_strides.z + key * params.mask_strides.w);
    }
    return shown;
}

fn score_of(scaled: f32, item: Item, head: u32, row: u32, key: u32) -> Scored {
    var result = Scored(scaled, true);
    if (softcap_first()) {
        result.score = params.softcap * tanh_exact(result.score / params.softcap);
    }
    if (has_bias()) {
        let bias = bias_at(item.batch * params.bias_strides.x + head * params.bias_strides.y + row * params.bias_strides.z + key * params.bias_strides.w);
        result.score += bias;
        result.visible = !is_negative_infinity(bias);
    }
    if (alibi_signed() || alibi_symmetric() || has_relative_bias()) {
        let distance = i32(key) - (i32(row) + item.offset);
        if (alibi_signed()) {
            result.score += bitcast<f32>(table(params.table_alibi_slopes + head)) * f32(distance);
        }
        if (alibi_symmetric()) {
            result.score -= bitcast<f32>(table(params.table_alibi_slopes + head)) * f32(abs(distance));
        }
        if (has_relative_bias()) {
            let column = clamp(-distance, -params.max_distance, params.max_distance) + params.max_distance;
            result.score += bitcast<f32>(table(params.table_relative_bias + head * u32(2 * params.max_distance + 1) + u32(column)));
        }
    }
    if (softcap_last()) {
        result.score = params.softcap * tanh_exact(result.score / params.softcap);
    }
    result.visible = result.visible && is_shown(item, head, row, key);
    return result;
}
