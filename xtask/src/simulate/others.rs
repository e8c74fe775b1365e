//! Kernels that no plan has: a layer's projections, and the kernels that keep a cache.

use std::collections::HashMap;

use wgpu_attention::plan::{KernelExport, Shader, cache_shaders, linear_shaders};
use wgpu_attention::rotary::{Pairing, QkNorm, Rotary, Sections};
use wgpu_attention::{DType, Error, Hadamard, HostVec};
use wgpu_attention_simulator::{Binding, Buffer, LaneOrder, Options};

use super::device::{POISON, Shaders};
use super::log::Log;
use crate::host::{bytes_of, f32s_of, stored, words_of};

/// Runs every one of them; gives the number of runs.
pub(super) fn run(seed: u64, lanes: LaneOrder, shaders: &Shaders, log: &Log, wanted: impl Fn(&str) -> bool) -> usize {
    let mut runs = 0;
    for shader in linear_shaders().iter().chain(&cache_shaders()).filter(|shader| wanted(&shader.name)) {
        let kernel = KernelCase { shader, export: KernelExport::from(shader), seed, lanes, shaders, log };
        let answers = match shader.name.split([' ', ',']).next().unwrap_or_default() {
            "projection" => vec![kernel.projection(17, 41), kernel.projection(70, 133)],
            "transpose" => vec![kernel.transpose(19, 37)],
            "advance" => vec![kernel.advance()],
            "copy" => vec![kernel.copy_pages()],
            "move" => vec![kernel.move_tokens()],
            "page" => vec![kernel.page_table()],
            "token" => [0, 1, 2].map(|kind| kernel.token_angles(kind)).into(),
            "rotate" => vec![kernel.rotate()],
            "append" => vec![kernel.append()],
            _ => vec![Err("nobody runs it".into())],
        };
        runs += answers.len();
        answers.into_iter().filter_map(Result::err).for_each(|why| log.complain(format!("{}: {why}", shader.name)));
    }
    runs
}

type Answer<T = ()> = Result<T, String>;

struct KernelCase<'a> {
    shader: &'a Shader,
    export: KernelExport,
    seed: u64,
    lanes: LaneOrder,
    shaders: &'a Shaders,
    log: &'a Log,
}

/// Values of the uniform's fields; the others are 0.
type Fields<'a> = &'a [(&'a str, &'a [u32])];

impl KernelCase<'_> {
    /// Runs it on buffers bound from 1 on, or under the numbers given; gives their contents afterwards.
    fn dispatch(&self, fields: Fields<'_>, grid: [u32; 3], buffers: Vec<(u32, Buffer)>) -> Answer<HashMap<u32, Vec<u8>>> {
        let shader = self.shaders.get(&self.export.text).map_err(|error| error.to_string())?;
        let mut numbers: Vec<u32> = vec![0];
        let mut list = vec![Buffer::filled(&self.params(fields)?)];
        for (number, buffer) in buffers {
            numbers.push(number);
            list.push(buffer);
        }
        let bind = |(buffer, &binding): (usize, &u32)| Binding { binding, buffer, offset: 0, size: usize::MAX };
        let bindings: Vec<Binding> = numbers.iter().enumerate().map(bind).collect();
        let options = Options { seed: self.seed, lanes: self.lanes, ..Options::default() };
        let report = shader.dispatch(&mut list, &bindings, grid, &options).map_err(|error| error.to_string())?;
        self.log.add(&self.export, &shader, &report);
        Ok(numbers.into_iter().zip(list).map(|(number, buffer)| (number, buffer.bytes())).collect())
    }

    /// The uniform's bytes, by the names of its fields in the shader's own text: `u32` and `vec4<u32>`.
    fn params(&self, fields: Fields<'_>) -> Answer<Vec<u8>> {
        let text = &self.export.text;
        let start = text.find("Params {").ok_or("it has no params")?;
        let end = start + text[start..].find("\n}").ok_or("its params do not end")?;
        let mut left: HashMap<&str, &[u32]> = fields.iter().copied().collect();
        let mut words = Vec::new();
        for line in text[start..end].lines().skip(1).map(str::trim).filter(|line| !line.starts_with("//")) {
            let (name, kind) = line.split_once(':').ok_or_else(|| format!("no field: {line}"))?;
            let len = if kind.contains("vec4") { 4 } else { 1 };
            let value = left.remove(name).unwrap_or_default();
            words.extend((0..len).map(|at| value.get(at).copied().unwrap_or(0)));
        }
        if let Some(name) = left.keys().next() {
            return Err(format!("no field `{name}`"));
        }
        Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    /// A `const NAME: u32 = 12u;` of its text; 0 where there is none.
    fn constant(&self, name: &str) -> u32 {
        let start = format!("const {name}: u32 = ");
        let line = self.export.text.lines().find_map(|line| line.strip_prefix(&start));
        line.and_then(|line| line.trim_end_matches("u;").parse().ok()).unwrap_or(0)
    }

    /// Y = X W^T + b, whose products and sums are exact in f32, with room for a row after each item.
    fn projection(&self, rows: u32, columns: u32) -> Answer {
        let depth = if self.shader.name.contains("vec4s") { 36 } else { 21 };
        let (item_rows, item_stride) = (rows.div_ceil(2), rows.div_ceil(2) + 1);
        let x = numbers(rows * depth, 5);
        let w = numbers(columns * depth, 0);
        let bias = numbers(columns, 3);
        let has_bias = self.shader.name.contains("bias");
        let workgroups = rows.div_ceil(self.constant("TILE_M")) * columns.div_ceil(self.constant("TILE_N"));
        let fields: Fields<'_> = &[
            ("rows", &[rows]),
            ("columns", &[columns]),
            ("depth", &[depth]),
            ("item_rows", &[item_rows]),
            ("item_stride", &[item_stride]),
            ("grid_width", &[2]),
            ("end_workgroup", &[workgroups]),
        ];
        let len = (2 * item_stride * columns) as usize;
        let mut buffers = vec![(1, filled(&x)), (2, filled(&w)), (3, Buffer::unwritten(4 * len, POISON))];
        buffers.extend(has_bias.then(|| (4, filled(&bias))));
        let y = f32s_of(&self.dispatch(fields, [2, workgroups / 2 + 1, 1], buffers)?[&3]);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let product: f32 = (0..depth).map(|k| x[(row * depth + k) as usize] * w[(column * depth + k) as usize]).sum();
            let expected = product + if has_bias { bias[column as usize] } else { 0.0 };
            let got = y[((row / item_rows * item_stride + row % item_rows) * columns + column) as usize];
            same(&format!("Y at {row}, {column}"), got, expected, 0.0)?;
        }
        Ok(())
    }

    fn transpose(&self, rows: u32, columns: u32) -> Answer {
        let x = numbers(rows * columns, 0);
        let workgroups = rows.div_ceil(16) * columns.div_ceil(16);
        let fields: Fields<'_> = &[("rows", &[rows]), ("columns", &[columns]), ("grid_width", &[4]), ("end_workgroup", &[workgroups])];
        let buffers = vec![(1, filled(&x)), (2, Buffer::unwritten(4 * x.len(), POISON))];
        let y = f32s_of(&self.dispatch(fields, [4, workgroups / 4 + 1, 1], buffers)?[&2]);
        for (at, &expected) in x.iter().enumerate() {
            let (row, column) = (at / columns as usize, at % columns as usize);
            same(&format!("Y at {column}, {row}"), y[column * rows as usize + row], expected, 0.0)?;
        }
        Ok(())
    }

    /// Five slots get 3 keys each; the last has no room.
    fn advance(&self) -> Answer {
        let state = [[1, 2, 0, 7, 9], [3; 5], [16, 16, 16, 16, 10], [0; 5]].concat();
        let got = self.dispatch(&[("slots", &[5]), ("workgroups", &[1]), ("grid_width", &[1])], [2, 1, 1], vec![(1, words(&state))])?;
        let expected = [[4, 5, 3, 10, 9], [3, 3, 3, 3, 0], [16, 16, 16, 16, 10], [0, 0, 0, 0, 1]].concat();
        same_words("state", &words_of(&got[&1]).collect::<Vec<u32>>(), &expected)
    }

    fn copy_pages(&self) -> Answer {
        let pool: Vec<u32> = (0..5 * 40).collect();
        let fields: Fields<'_> = &[("copies", &[2]), ("page_words", &[40]), ("workgroups", &[2]), ("grid_width", &[2])];
        let got = self.dispatch(fields, [2, 2, 1], vec![(1, words(&[3, 0, 1, 4])), (4, words(&pool))])?;
        let page = |page: usize| pool[page * 40..][..40].to_vec();
        same_words("pool", &words_of(&got[&4]).collect::<Vec<u32>>(), &[page(3), page(1), page(2), page(3), page(1)].concat())
    }

    /// Tokens of three pages move to slots that were read before them; the list ends where both slots are equal.
    fn move_tokens(&self) -> Answer {
        let (heads, page_size, widths, moves) = (2usize, 4usize, [40usize, 24], [[2usize, 1], [5, 2], [6, 5], [7, 7], [0, 9]]);
        let pools = widths.map(|width| (0..3 * page_size * heads * width).map(|word| word as u32).collect::<Vec<u32>>());
        let strides = widths.map(|width| [heads * page_size * width, page_size * width, width, width].map(|stride| stride as u32));
        let fields: Fields<'_> = &[
            ("key_pool_strides", &strides[0]),
            ("value_pool_strides", &strides[1]),
            ("num_kv_heads", &[heads as u32]),
            ("page_size", &[page_size as u32]),
            ("copies", &[moves.len() as u32]),
            ("workgroups", &[2]),
            ("grid_width", &[1]),
        ];
        let list = words(&moves.as_flattened().iter().map(|&slot| slot as u32).collect::<Vec<u32>>());
        let got = self.dispatch(fields, [1, 3, 1], vec![(1, list), (4, words(&pools[0])), (5, words(&pools[1]))])?;
        for (number, (pool, width)) in [4, 5].into_iter().zip(pools.into_iter().zip(widths)) {
            let mut expected = pool;
            for [from, to] in moves.into_iter().take_while(|[from, to]| from != to) {
                for head in 0..heads {
                    let at = |slot: usize| ((slot / page_size * heads + head) * page_size + slot % page_size) * width;
                    expected.copy_within(at(from)..at(from) + width, at(to));
                }
            }
            same_words("a pool", &words_of(&got[&number]).collect::<Vec<u32>>(), &expected)?;
        }
        Ok(())
    }

    /// One good item; the others have a page past the pool, an over-full last page, an empty one, no page, pages that end before they start,
    /// and pages past the end of the list.
    fn page_table(&self) -> Answer {
        let fields: Fields<'_> = &[
            ("batch", &[7]),
            ("slots", &[1]),
            ("first_slot", &[8]),
            ("page_size", &[8]),
            ("pages_per_slot", &[3]),
            ("copies", &[6]),
            ("page_words", &[24]),
            ("workgroups", &[1]),
            ("grid_width", &[1]),
        ];
        let indptr = words(&[0, 2, 3, 4, 5, 5, 4, 9]);
        let last_page_len = words(&[3, 1, 9, 0, 1, 1, 1]);
        let buffers = vec![(1, words(&[0; 29])), (2, indptr), (3, words(&[5, 1, 9, 2, 4])), (6, last_page_len)];
        let got: Vec<u32> = words_of(&self.dispatch(fields, [1, 1, 1], buffers)?[&1]).collect();
        const NONE: u32 = u32::MAX;
        let pages = [[5, 1, NONE], [9, NONE, NONE], [2, NONE, NONE], [4, NONE, NONE], [NONE; 3], [NONE; 3], [NONE; 3]];
        let expected = [&[0, 11, 0, 0, 0, 0, 0, 0][..], pages.as_flattened()].concat();
        same_words("tables", &got, &expected)
    }

    /// Angles of four tokens by positions without sections, with chunks, and with interleaved ones; one is past the tables.
    fn token_angles(&self, kind: u32) -> Answer {
        let rotary = self.rotary(12, 8)?;
        let rotary = match kind {
            0 => Ok(rotary),
            1 => rotary.with_sections(Sections::Chunks([3, 1, 2])),
            _ => rotary.with_sections(Sections::Interleaved([3, 1, 2])),
        };
        let rotary = rotary.map_err(|error| error.to_string())?;
        let positions = [3u32, 0, 7, 8, 1, 2, 5, 8, 6, 4, 0, 8];
        let fields: Fields<'_> = &[
            ("key_strides", &[3, 1, 2, kind]),
            ("seq_len", &[4]),
            ("pairs", &[6]),
            ("page_size", &[8]),
            ("workgroups", &[1]),
            ("grid_width", &[1]),
        ];
        let buffers = vec![(1, words(&positions)), (2, filled(&angles(&rotary))), (7, Buffer::unwritten(4 * 4 * 12, POISON))];
        let got = f32s_of(&self.dispatch(fields, [1, 1, 1], buffers)?[&7]);
        for (token, pair) in (0..4).flat_map(|token| (0..6).map(move |pair| (token, pair))) {
            let coordinate = rotary.sections().map_or(0, |sections| sections.coordinate(pair));
            let position = positions[4 * coordinate + token] as usize;
            let expected = rotary.angles().get(6 * position + pair).filter(|_| position < 8).map_or([f32::NAN; 2], |&angle| angle);
            for (n, expected) in expected.into_iter().enumerate() {
                let x = got[2 * (6 * token + pair) + n];
                if x.to_bits() != expected.to_bits() && !(x.is_nan() && expected.is_nan()) {
                    return Err(format!("{x} instead of {expected}: token {token}, pair {pair}"));
                }
            }
        }
        Ok(())
    }

    /// Rows of three tokens and two heads, a part of each turned.
    fn rotate(&self) -> Answer {
        let (heads, head_dim, positions) = (2, 12, [0u32, 6, 3]);
        let dtype = self.dtype("rotate")?;
        let rotary = self.rotary(8, 8)?;
        let mut rows = HostVec::from_f32(dtype, &numbers(3 * heads * head_dim, 1)).to_f32();
        let bytes = HostVec::from_f32(dtype, &rows).as_slice().bytes().to_vec();
        let fields: Fields<'_> = &[
            ("query_strides", &[0, head_dim, heads * head_dim, 0]),
            ("seq_len", &[3]),
            ("num_heads", &[heads]),
            ("pairs", &[4]),
            ("distance", &[4]),
            ("workgroups", &[1]),
            ("grid_width", &[1]),
        ];
        let buffers = vec![(1, words(&positions)), (6, Buffer::filled(&bytes)), (7, filled(&angles(&rotary)))];
        let got = self.dispatch(fields, [1, 1, 1], buffers)?;
        let places: Vec<usize> = positions.iter().map(|&position| position as usize).collect();
        rotary.apply_tokens(&mut rows, heads as usize, head_dim as usize, &places).map_err(|error| error.to_string())?;
        near("rows", &stored(dtype, &got[&6], rows.len()).to_f32(), &rows, epsilon(dtype))
    }

    /// Two items of a cache of three slots get 3 and 2 of three new tokens; the pages lie in no order.
    fn append(&self) -> Answer {
        let (new, cache_key) = (self.dtype("append")?, self.dtype("to")?);
        let cache_value = self.dtype("and").unwrap_or(cache_key);
        let is_turned = self.export.text.contains("const INTERLEAVED");
        let has_query = self.export.text.contains("const HAS_QUERY: bool = true");
        let (heads, queries, dim, dim_v, page) = (2u32, 4u32, 64u32, 32u32, 4u32);
        let (tokens, items) = (3u32, 2u32);
        // Lengths after the step, what was added, room, overflow; then the pages.
        let state = [&[9u32, 5, 2][..], &[9, 3, 2], &[12; 3], &[0; 3], &[8, 8, 8], &[3, 0, 8], &[5, 8, 8]].concat();
        let (length, added) = ([5u32, 2], [3u32, 2]);
        let rotary = self.rotary(48, 16)?;
        let (is_normalised, by_token) = (self.is_normalised(), self.shader.name.contains(" by token"));
        let given = |rows: u32, dim: u32, from: u32| HostVec::from_f32(new, &numbers(items * rows * tokens * dim, from));
        let (key, query) = (given(heads, dim, 1), given(queries, dim, 3));
        // The second and the third token of the first item hold zeros and infinity: blocks have a way of their own for each.
        let mut numbers = given(heads, dim_v, 2).to_f32();
        numbers[dim_v as usize..2 * dim_v as usize].fill(0.0);
        numbers[2 * dim_v as usize..3 * dim_v as usize].fill(f32::INFINITY);
        let value = HostVec::from_f32(new, &numbers);
        let of_rows = |rows: u32, dim: u32| [rows * tokens * dim, tokens * dim, dim, 0];
        let pool = |dim: u32| [heads * page * dim, page * dim, dim, 0];
        let units = dim / self.constant("KEY_UNIT") + dim_v / self.constant("VALUE_UNIT");
        let query_units = if has_query { items * tokens * queries * 24 / self.constant("QUERY_UNIT") } else { 0 };
        let rows_in_all = items * tokens * (2 * heads + if has_query { queries } else { 0 });
        let threads = if is_normalised { 64 * rows_in_all } else { items * tokens * heads * units + query_units };
        let workgroups = threads.div_ceil(64);
        let fields: Fields<'_> = &[
            ("key_strides", &of_rows(heads, dim)),
            ("value_strides", &of_rows(heads, dim_v)),
            ("query_strides", &of_rows(queries, dim)),
            ("key_pool_strides", &pool(dim)),
            ("value_pool_strides", &pool(dim_v)),
            ("batch", &[items]),
            ("seq_len", &[tokens]),
            ("num_heads", &[queries]),
            ("num_kv_heads", &[heads]),
            ("head_dim", &[dim]),
            ("head_dim_v", &[dim_v]),
            ("slots", &[3]),
            ("first_slot", &[1]),
            ("page_size", &[page]),
            ("pages_per_slot", &[3]),
            ("pairs", &[if is_turned { 24 } else { 0 }]),
            ("distance", &[if is_turned { 24 } else { 0 }]),
            ("workgroups", &[workgroups]),
            ("grid_width", &[2]),
        ];
        let room = |dtype: DType, dim: u32| Buffer::unwritten(dtype.bytes((8 * heads * page * dim) as usize), 0);
        let mut buffers = vec![
            (1, words(&state)),
            (2, Buffer::filled(key.as_slice().bytes())),
            (3, Buffer::filled(value.as_slice().bytes())),
            (4, room(cache_key, dim)),
            (5, room(cache_value, dim_v)),
        ];
        buffers.extend(has_query.then(|| (6, Buffer::filled(query.as_slice().bytes()))));
        buffers.extend(is_turned.then(|| (7, filled(&angles(&rotary)))));
        buffers.extend(is_normalised.then(|| (8, filled(norm().words()))));
        let got = self.dispatch(fields, [2, workgroups / 2 + 1, 1], buffers)?;
        let pools = [(4, cache_key, dim), (5, cache_value, dim_v)];
        let pools = pools.map(|(at, dtype, dim)| stored(dtype, &got[&at], (8 * heads * page * dim) as usize).to_f32());
        // The line of angles of a token is its number, or its position.
        let line = |item: u32, token: u32| if by_token { item * tokens + token } else { length[item as usize] + token - tokens };
        for (item, token) in (0..items).flat_map(|item| (0..tokens).map(move |token| (item, token))) {
            // In front of an item that is shorter than the step there is nothing.
            let Some(position) = (length[item as usize] + token).checked_sub(tokens) else { continue };
            for head in 0..heads {
                if token + added[item as usize] < tokens {
                    continue;
                }
                let at = |dim: u32| (((item * heads + head) * tokens + token) * dim) as usize;
                let entry = state[(12 + 3 * (1 + item) + position / page) as usize];
                let to = |dim: u32| (((entry * heads + head) * page + position % page) * dim) as usize;
                let row = self.kept(self.turned(&key.to_f32()[at(dim)..][..dim as usize], line(item, token), QkNorm::apply_key)?, "keys");
                near("the key pool", &pools[0][to(dim)..][..dim as usize], &row, epsilon(cache_key) * largest(&row))?;
                let row = self.kept(value.to_f32()[at(dim_v)..][..dim_v as usize].to_vec(), "values");
                near("the value pool", &pools[1][to(dim_v)..][..dim_v as usize], &row, epsilon(cache_value) * largest(&row))?;
            }
            for head in (0..queries).filter(|_| has_query) {
                let at = (((item * queries + head) * tokens + token) * dim) as usize;
                let row = self.turned(&query.to_f32()[at..][..dim as usize], line(item, token), QkNorm::apply_query)?;
                near("the queries", &stored(new, &got[&6], query.as_slice().len()).to_f32()[at..][..dim as usize], &row, epsilon(new))?;
            }
        }
        Ok(())
    }

    fn is_normalised(&self) -> bool {
        self.shader.name.contains(", normalised")
    }

    /// A new row before it is stored: normalised, and rotated by a line of the angles.
    fn turned(&self, row: &[f32], line: u32, apply: fn(&QkNorm, &mut [f32]) -> Result<(), Error>) -> Answer<Vec<f32>> {
        let mut row = row.to_vec();
        if self.is_normalised() {
            apply(&norm(), &mut row).map_err(|error| error.to_string())?;
        }
        if self.export.text.contains("const INTERLEAVED") {
            self.rotary(48, 16)?.apply(&mut row, line as usize).map_err(|error| error.to_string())?;
        }
        Ok(row)
    }

    /// A row as a cache stores it.
    fn kept(&self, mut row: Vec<f32>, rows: &str) -> Vec<f32> {
        if self.shader.name.contains(&format!("{rows} in Hadamard blocks"))
            && let Some(rotation) = Hadamard::of(row.len())
        {
            rotation.rotate(&mut row);
        }
        row
    }

    /// The storage type after a word of the kernel's name.
    fn dtype(&self, word: &str) -> Answer<DType> {
        let after = self.shader.name.split_once(&format!("{word} ")).map(|(_, after)| after).unwrap_or_default();
        let name = after.split([' ', ',']).next().unwrap_or_default();
        let all = DType::FLOATS.into_iter().chain(DType::QUANTISED);
        all.into_iter().find(|dtype| dtype.to_string() == name).ok_or_else(|| format!("`{name}` is no storage type"))
    }

    fn rotary(&self, width: usize, positions: usize) -> Answer<Rotary> {
        let pairing = if self.shader.name.contains("interleaved") { Pairing::Interleaved } else { Pairing::HalfSplit };
        Rotary::new(pairing, 100.0, width, positions).map_err(|error| error.to_string())
    }
}

/// Cosine and sine of each position and pair: a row of ones and zeros turned tells both.
/// Norm of heads of 64.
fn norm() -> QkNorm {
    QkNorm::new(&numbers(64, 7), &numbers(64, 8), 1e-3).expect("equally many")
}

fn angles(rotary: &Rotary) -> Vec<f32> {
    let pairs = rotary.pairs();
    let mut angles = Vec::new();
    for position in 0..rotary.positions() {
        let mut row = vec![0.0; 2 * pairs];
        let places = |pair: usize| if rotary.pairing() == Pairing::Interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + pairs] };
        (0..pairs).for_each(|pair| row[places(pair)[0]] = 1.0);
        let _ = rotary.apply(&mut row, position); // it is as wide as it must be
        angles.extend((0..pairs).flat_map(|pair| places(pair).map(|at| row[at])));
    }
    angles
}

/// Multiples of 1/16 below 1, whose products and sums are exact in f32.
fn numbers(len: u32, from: u32) -> Vec<f32> {
    (from..from + len).map(|at| (at * 7 % 23) as f32 / 16.0 - 0.6875).collect()
}

fn filled(numbers: &[f32]) -> Buffer {
    Buffer::filled(&bytes_of(numbers))
}

fn words(words: &[u32]) -> Buffer {
    Buffer::filled(&words.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// Tolerance of a stored element of at most 1.
fn epsilon(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 1e-6,
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        DType::Q8 => 8e-3,
        DType::Q4 => 0.13,
    }
}

/// Largest finite magnitude of a row, at least 1.
fn largest(row: &[f32]) -> f32 {
    row.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(1.0, f32::max)
}

fn same(what: &str, got: f32, expected: f32, within: f32) -> Answer {
    let agrees = if expected.is_finite() { (got - expected).abs() <= within } else { !got.is_finite() };
    if agrees { Ok(()) } else { Err(format!("{what} is {got} instead of {expected}")) }
}

fn near(what: &str, got: &[f32], expected: &[f32], within: f32) -> Answer {
    got.iter().zip(expected).enumerate().try_for_each(|(at, (&got, &expected))| same(&format!("{what} at {at}"), got, expected, within))
}

fn same_words(what: &str, got: &[u32], expected: &[u32]) -> Answer {
    if got == expected { Ok(()) } else { Err(format!("{what} is {got:?} instead of {expected:?}")) }
}
