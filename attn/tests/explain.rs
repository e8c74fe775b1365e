//! `attn explain` shows the right numbers as text, as JSON and as a picture.

mod common;

use common::{attn, folder, text, text as text_of};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn rounded(value: &Value) -> Vec<f64> {
    floats(value).into_iter().map(|x| (x * 1e4).round() / 1e4).collect()
}

const UNSCALED: [f64; 5] = [0.0763, 0.0763, 0.5637, 0.0763, 0.2074];
const SCALED: [f64; 5] = [0.1257, 0.1257, 0.3989, 0.1257, 0.2239];

#[test]
fn the_worked_example_in_text() {
    for backend in ["cpu", "oracle"] {
        let text = attn(&["explain", "--backend", backend]).ok().out;
        for line in [
            "the row of \"deadlift\": [1, 1, 3, 1, 2]",
            "[0.0763, 0.0763, 0.5637, 0.0763, 0.2074]",
            "[0.1257, 0.1257, 0.3989, 0.1257, 0.2239]",
            "\"to\" has no embedding in this example and is left out.",
            "A popular text prints [0.04, 0.04, 0.66, 0.04, 0.22]",
            "No scale gives that.",
            "deadlift = [0.7486, 0.5246, 0.7486]",
        ] {
            assert!(text.contains(line), "`{line}` is not in: {text}");
        }
    }
}

#[test]
fn the_worked_example_in_json() {
    let told = attn(&["explain", "--backend", "cpu", "--json"]).ok().json();
    assert_eq!(told["tokens"], json!(["She", "wants", "deadlift", "heavy", "weights"]));
    assert_eq!(told["without_embedding"], json!(["to"]));
    assert_eq!(told["focus"]["token"], "deadlift");
    assert_eq!(floats(&told["focus"]["scores_unscaled"]), [1.0, 1.0, 3.0, 1.0, 2.0]);
    assert_eq!(rounded(&told["focus"]["weights_unscaled"]), UNSCALED);
    assert_eq!(rounded(&told["weights"][2]), SCALED);
    assert_eq!(rounded(&told["output"][2]), [0.7486, 0.5246, 0.7486]);
    // Three heads of width 1. Head 1 has the first components, 1 0 1 0 1: deadlift's row is e/(3e+2), 1/(3e+2), ...
    let e = 1f64.exp();
    let (seen, unseen) = (e / (3.0 * e + 2.0), 1.0 / (3.0 * e + 2.0));
    for (got, expected) in floats(&told["heads"][0]["weights"][2]).into_iter().zip([seen, unseen, seen, unseen, seen]) {
        assert!((got - expected).abs() < 1e-6);
    }
    assert_eq!(told["heads_output"], told["layer_output"], "W_O is the identity");
    assert!(told["oracle_largest_difference"].as_f64().expect("a number") < 1e-6);
}

#[test]
fn no_scale_gives_the_popular_numbers() {
    // Softmax of s * [1, 1, 3, 1, 2]: where deadlift has 0.66, weights has 0.19, not 0.22.
    let softmax = |s: f64| {
        let [one, two, three] = [1.0, 2.0, 3.0].map(|score: f64| (s * score).exp());
        let sum = 3.0 * one + two + three;
        [one / sum, two / sum, three / sum]
    };
    let popular = [0.04, 0.22, 0.66];
    let near = |s: f64| softmax(s).iter().zip(popular).all(|(got, said)| (got - said).abs() <= 0.005);
    assert!(!(0..100_000).any(|step| near(f64::from(step) * 1e-4)));
}

#[test]
fn another_sentence_says_what_it_is_made_of() {
    let text = attn(&["explain", "the cat sat on the mat", "--backend", "cpu", "--focus", "cat"]).ok().out;
    assert!(text.contains("Made up") && text.contains("hash") && text.contains("the row of \"cat\""), "{text}");
    let json = || attn(&["explain", "the cat sat on the mat", "--backend", "cpu", "--json"]).ok().json();
    let told = json();
    assert_eq!(told, json(), "the same numbers every time");
    assert_eq!(told["weights"][0], told["weights"][4], "equal words, equal rows");
    for row in told["weights"].as_array().expect("rows") {
        assert!((floats(row).iter().sum::<f64>() - 1.0).abs() < 1e-5);
    }
    // Long sentences are shown as shades without figures.
    attn(&["explain", &"word ".repeat(40), "--backend", "cpu"]).ok();
}

#[test]
fn pictures_are_well_formed() {
    let folder = folder("pictures");
    for (name, sentence, tokens, panels) in [
        ("worked.svg", "She wants to deadlift heavy weights", 5, 4),
        ("hostile.svg", "a<b \"c\" &amp; ]]> \u{1}d\u{ffff} <script>alert(1)</script>", 5, 3),
        ("one.svg", "word", 1, 3),
    ] {
        let path = folder.join(name);
        attn(&["explain", sentence, "--backend", "cpu", "--svg", text(&path)]).ok();
        let svg = std::fs::read_to_string(&path).expect("it was written");
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error} in: {svg}"));
        let root = document.root_element();
        assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
        let cells =
            root.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "rect")) && node.has_children()).count();
        assert_eq!(cells, panels * tokens * tokens, "{name}");
        assert!(!svg.contains("<script") && !svg.contains("href"), "{name} is self-contained");
        let [width, height] =
            ["width", "height"].map(|name| root.attribute(name).and_then(|size| size.parse::<f32>().ok()).expect("a size"));
        for node in root.descendants() {
            let at = |name| node.attribute(name).and_then(|x| x.parse::<f32>().ok()).unwrap_or(0.0);
            assert!(at("x") >= 0.0 && at("x") <= width && at("y") >= 0.0 && at("y") <= height, "{name}: {node:?}");
        }
    }
}

#[test]
fn the_heads_of_a_real_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/minilm/minilm_layer0_block.safetensors");
    let told = attn(&["explain", "--model", path, "--backend", "cpu", "--json"]).ok().json();
    assert_eq!(told["tokens"], json!(["[CLS]", "she", "wants", "to", "dead", "##lift", "heavy", "weights", "[SEP]"]));
    // Probabilities that the model's own code computed, stored in the file.
    let bytes = std::fs::read(path).expect("there");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let expected = file.tensor("out.probs").expect("there");
    let expected = expected.data().chunks_exact(4).map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]])));
    let got = told["heads"].as_array().expect("heads").iter();
    let got = got.flat_map(|head| head["weights"].as_array().expect("rows").iter().flat_map(floats)).collect::<Vec<f64>>();
    assert_eq!(got.len(), 12 * 9 * 9);
    for (got, expected) in got.into_iter().zip(expected) {
        assert!((got - expected).abs() <= 2e-5 + 1e-4 * expected.abs(), "{got} instead of {expected}");
    }

    let picture = folder("model").join("heads.svg");
    let text = attn(&["explain", "--model", path, "--backend", "cpu", "--focus", "dead", "--svg", text(&picture)]).ok().out;
    assert!(text.contains("Head 12 of 12") && text.contains("› dead"), "{text}");
    let svg = std::fs::read_to_string(&picture).expect("it was written");
    roxmltree::Document::parse(&svg).expect("well-formed");

    let refused = |more: &[&str], culprits: &[&str]| attn(&[&["explain", "--backend", "cpu"], more].concat()).refused(culprits);
    refused(&["--model", path, "--num-heads", "7"], &["minilm_layer0_block", "7 heads"]);
    refused(&["--model", path, "--num-heads", "0"], &["num_heads"]);
    refused(&["--model", path, "--focus", "lift"], &["--focus", "##lift"]);
    refused(&["--model", path, "a sentence"], &["--model"]);
    refused(&["--model", "nowhere.safetensors"], &["nowhere.safetensors"]);
    refused(&["--layer", "1"], &["--model"]);
    refused(&["--tokens", "a b"], &["--model"]);
    refused(&["--model", path, "--tokens", "a b"], &["--tokens", "2 tokens", "9 rows"]);

    // Labels of the user, as text and as a file with a label per line.
    let labels = folder("labels").join("labels.txt");
    std::fs::write(&labels, "a\nb b\nc\nd\ne\nf\ng\nh\ni\n").expect("written");
    for (tokens, second) in [("a b c d e f g h i", "b"), (text_of(&labels), "b b")] {
        let arguments = ["explain", "--model", path, "--backend", "cpu", "--json", "--tokens", tokens, "--focus", second];
        let told = attn(&arguments).ok().json();
        assert_eq!((&told["tokens"][1], &told["focus"]), (&json!(second), &json!(second)));
    }
}

#[test]
fn words() {
    let told = |sentence: &str| attn(&["explain", sentence, "--backend", "cpu", "--json"]).ok().json()["tokens"].clone();
    assert_eq!(told("she wants to deadlift, heavy weights!"), json!(["She", "wants", "deadlift", "heavy", "weights"]));
    assert_eq!(told("She wants to lift"), json!(["She", "wants", "to", "lift"]));
    assert_eq!(told("a\u{1b}[31mb"), json!(["a[31mb"]));
    attn(&["explain", " ... !"]).refused(&["no words"]);
}

#[test]
fn wide_characters_keep_the_columns() {
    let text = attn(&["explain", "猫 cat ねこねこねこ e\u{301}", "--backend", "cpu"]).ok().out;
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('▓') || line.contains('█') || line.contains('░')).take(4).collect();
    let columns = |text: &str| text.width();
    // Every row of a heat map ends in the same column.
    assert!(rows.len() == 4 && rows.iter().all(|row| columns(row) == columns(rows[0])), "{rows:?}");
}

#[test]
fn bad_input() {
    attn(&["explain", "--svg", "attention.png"]).refused(&["attention.png", ".svg"]);
    attn(&["explain", ""]).refused(&["no words"]);
    attn(&["explain", &"word ".repeat(65)]).refused(&["65 words"]);
    attn(&["explain", "--focus", "lift"]).refused(&["--focus", "`lift`", "deadlift"]);
    attn(&["explain", "--backend", ""]).refused(&["--backend"]);
    attn(&["explain", "--svg", "/nowhere/at/all.svg"]).refused(&["/nowhere/at/all.svg"]);
}

/// Numbers of a mask on the CPU, for all heads.
fn counted(arguments: &[&str]) -> serde_json::Value {
    attn(&[&["explain", "--backend", "cpu", "--json"], arguments].concat()).ok().json()["all"].clone()
}

#[test]
fn a_masks_numbers_are_exact() {
    for length in [1u64, 2, 63, 64, 65, 200] {
        let (shape, tiles) = (format!("1,1,1,{length},{length},8"), length.div_ceil(64));
        for mask in [["--visible", "at.key <= at.position"], ["--causal", "top-left"]] {
            let told = counted(&[&mask[..], &["--shape", &shape]].concat());
            assert_eq!(told["visible"], length * (length + 1) / 2);
            assert_eq!(told["density"], (length + 1) as f64 / (2 * length) as f64, "{length}");
            // Tiles above the diagonal are skipped, those below are whole; one of a single pair is whole, too.
            let diagonal = if length % 64 == 1 { tiles - 1 } else { tiles };
            let expected = json!({ "all": tiles * tiles, "skipped": tiles * (tiles - 1) / 2, "tested": diagonal, "in_vain": 0 });
            let got = &told["tiles"];
            let got = json!({ "all": got["all"], "skipped": got["skipped"], "tested": got["tested"], "in_vain": got["tested_in_vain"] });
            assert_eq!(got, expected, "{length} {mask:?}");
            assert_eq!(told["change"], json!([0.0, 0.0]));
        }
    }
    // Rows at the end of the keys, an item and heads of their own, and masks together.
    let told = counted(&["--visible", "at.key <= at.position - at.head", "--window", "3,0", "--shape", "2,2,1,4,9,8", "--tile", "2,3"]);
    assert_eq!(told["visible"], 2 * (4 * 4 + 4 * 3));
    let told =
        counted(&["--score", "x - slopes[at.head] * f32(at.position - at.key)", "--table", "slopes=1,2:f32", "--shape", "1,2,2,8,8,4"]);
    assert_eq!((&told["change"], &told["density"]), (&json!([-14.0, 14.0]), &json!(1.0)));
    // A score of -inf masks, and one of an unknown kind is tested in vain.
    let told = counted(&["--score", "select(x, bitcast<f32>(0xff800000u), at.key > at.row)", "--shape", "1,1,1,8,8,4"]);
    assert_eq!(told["visible"], 36);
    let told = counted(&["--visible", "f32(at.key) < 0.0", "--shape", "1,1,1,8,8,4"]);
    assert_eq!((&told["tiles"]["tested_in_vain"], &told["change"]), (&json!(1), &json!(null)));
}

/// Draws a mask and returns the picture.
fn drawn(name: &str, arguments: &[&str]) -> String {
    let path = folder("masks").join(name);
    attn(&[&["explain", "--backend", "cpu", "--svg", text(&path)], arguments].concat()).ok();
    let svg = std::fs::read_to_string(&path).expect("it was written");
    let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error} in: {svg}"));
    let root = document.root_element();
    assert!(!svg.contains("<script") && !svg.contains("href"), "{name} is self-contained");
    let [width, height] = ["width", "height"].map(|name| root.attribute(name).and_then(|size| size.parse::<f32>().ok()).expect("a size"));
    for node in root.descendants() {
        let at = |name| node.attribute(name).and_then(|x| x.parse::<f32>().ok()).unwrap_or(0.0);
        assert!(at("x") >= 0.0 && at("x") <= width && at("y") >= 0.0 && at("y") <= height, "{name}: {node:?}");
    }
    svg
}

/// Cells of a picture's path, by its rectangles: (x, y) of each in the colour.
fn cells(svg: &str, style: &str) -> Vec<(usize, usize)> {
    let line = svg.lines().find(|line| line.starts_with("<path transform") && line.contains(style)).expect("the colour");
    let path = line.split(" d=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a path");
    let (mut cells, mut place) = (Vec::new(), [0, 0]);
    for rectangle in path.split('m').skip(1) {
        let numbers = rectangle.split(|c: char| !c.is_ascii_digit() && c != '-').filter(|number| !number.is_empty());
        let numbers: Vec<i32> = numbers.map(|number| number.parse().expect("a number")).collect();
        let [dx, dy, wide, high, back] = numbers[..] else { panic!("{rectangle}") };
        assert_eq!(back, -wide);
        place = [place[0] + dx, place[1] + dy];
        let [x, y] = place.map(|at| usize::try_from(at).expect("inside"));
        cells.extend((y..y + high as usize).flat_map(|y| (x..x + wide as usize).map(move |x| (x, y))));
    }
    cells.sort_unstable();
    cells
}

#[test]
fn a_masks_picture_has_its_pairs() {
    let causal = drawn("causal.svg", &["--visible", "at.key <= at.position", "--shape", "1,1,1,40,40,8", "--tile", "8,8"]);
    let expected = |is_visible: fn(usize, usize) -> bool, len: usize| -> Vec<(usize, usize)> {
        (0..len).flat_map(|x| (0..len).map(move |y| (x, y))).filter(|&(x, y)| is_visible(x, y)).collect()
    };
    assert_eq!(cells(&causal, "fill-opacity=\"1\""), expected(|x, y| x <= y, 40));
    assert_eq!(cells(&causal, "#d29922"), expected(|x, y| x == y, 5), "tested tiles");
    assert!(causal.len() < 6000, "{} bytes", causal.len());
    // Each wrong mask is another picture.
    for wrong in ["at.key < at.position", "at.key <= at.position + 1", "at.key >= at.position", "at.key <= at.position && at.key != 7"] {
        let other = drawn("wrong.svg", &["--visible", wrong, "--shape", "1,1,1,40,40,8", "--tile", "8,8"]);
        assert_ne!(cells(&other, "fill-opacity=\"1\""), cells(&causal, "fill-opacity=\"1\""), "{wrong}");
    }
    // The head that is drawn is the one that is asked for.
    let of_head = |head| {
        drawn("head.svg", &["--visible", "at.key < at.head * 3 + at.batch", "--shape", "2,2,2,8,8,8", "--batch", "1", "--head", head])
    };
    assert_eq!(cells(&of_head("0"), "fill-opacity=\"1\"").len(), 8);
    assert_eq!(cells(&of_head("1"), "fill-opacity=\"1\"").len(), 8 * 4);
}

#[test]
fn pictures_of_long_masks_and_of_scores() {
    let long = drawn("long.svg", &["--visible", "at.key <= at.position && at.position - at.key < 100", "--shape", "1,1,1,3000,3000,8"]);
    assert!(long.len() < 30_000, "{} bytes", long.len());
    let one = drawn("row.svg", &["--visible", "at.key % 2 == 0", "--shape", "1,1,1,1,700,8"]);
    assert!(one.contains("700"));
    let bias = drawn("bias.svg", &["--score", "x - f32(abs(at.row - at.key))", "--x", "2", "--shape", "1,1,1,20,20,8"]);
    assert!(bias.contains("change of a score of 2") && bias.contains("-19"), "{bias}");
    let curve = drawn("curve.svg", &["--score", "30.0 * tanh(x / 30.0)"]);
    assert!(curve.contains("<polyline") && curve.contains("score before"), "{curve}");
    // A mask is seen beside a score that depends on nothing else.
    let both = drawn("both.svg", &["--visible", "at.key <= at.position", "--softcap", "30"]);
    assert!(both.contains(">pairs<") && !both.contains("<polyline"), "{both}");
    let hostile = drawn("hostile.svg", &["--visible", "at.key < 3 && /* <script>alert(1)</script> \"&]]> */ true"]);
    assert!(hostile.contains("&lt;script&gt;"), "{hostile}");
    let none = drawn("none.svg", &["--visible", "false"]);
    assert!(none.contains("0 % visible"), "{none}");
}

#[test]
fn bad_masks() {
    let refused = |arguments: &[&str], culprits: &[&str]| attn(&[&["explain", "--backend", "cpu"], arguments].concat()).refused(culprits);
    refused(&["--visible", "at.key <"], &["--visible", "at the end"]);
    refused(&["--visible", "at.key < t[0]"], &["--visible", "line 1, column 10", "t"]);
    refused(&["--visible", "nowhere.wgsl"], &["nowhere.wgsl"]);
    refused(&["--visible", "true", "--head", "1"], &["--head 1", "there are 1"]);
    refused(&["--visible", "true", "--batch", "1"], &["--batch 1"]);
    refused(&["--visible", "true", "--tile", "0,8"], &["--tile", "ROWS,KEYS"]);
    refused(&["--visible", "true", "--tile", "8,x,8"], &["--tile", "ROWS,KEYS"]);
    refused(&["--visible", "true", "--x", "nan"], &["--x", "finite"]);
    refused(&["--visible", "true", "--align", "top-left"], &["--align", "leave it out"]);
    refused(&["--causal", "top-left", "--align", "0"], &["--align", "--causal"]);
    refused(&["--causal", "left"], &["--causal"]);
    refused(&["--visible", "true", "--shape", "1,64,64,100000,100000,8"], &["--shape", "pairs"]);
    refused(&["--visible", "true", "--shape", "1,1,1,0,8,8"], &["--shape", "seq_len_q is 0"]);
    refused(&["--visible", "true", "a sentence"], &["a sentence", "mask"]);
    refused(&["--visible", "true", "--focus", "cat"], &["--focus", "mask"]);
    refused(&["--visible", "true", "--model", "m.safetensors"], &["--model"]);
    refused(&["--shape", "1,1,1,8,8,8"], &["--shape", "--visible"]);
    refused(&["--table", "t=1"], &["--table t", "neither"]);
}
