//! Reads GGUF version 3: a header, typed metadata, tensor descriptions, then aligned tensor data.
//! Little-endian; see `docs/gguf.md` in ggml. Owns the container, not the element formats.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 pairs:u64
//! pairs   x { key:string type:u32 value }
//! tensors x { name:string dims:u32 dim:u64 x dims type:u32 offset:u64 }
//! padding to `general.alignment`, then data; offsets count from here
//! ```

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::dequant::Format;

const ALIGNMENT_DEFAULT: usize = 32;
/// Arrays may nest; no file in use goes deeper than one.
const NESTING_MAX: usize = 4;

/// A metadata value. Integers of every width are one variant, so are both float widths.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type.
    Int(i64),
    /// `f32`.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// A tensor's description.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// How elements are stored.
    pub format: Format,
    /// `[rows, columns]` or `[columns]`, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    start: usize,
}

/// A parsed file over its bytes.
#[derive(Debug)]
pub struct Gguf<'a> {
    bytes: &'a [u8],
    metadata: HashMap<String, Value>,
    tensors: Vec<(String, Tensor)>,
}

impl<'a> Gguf<'a> {
    /// Parses header, metadata and tensor descriptions; checks that every tensor lies in the file.
    ///
    /// # Errors
    /// Not a GGUF file of version 3, truncated, or with an element format not known here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        ensure!(cursor.take(4)? == b"GGUF", "not a GGUF file: it does not begin with \"GGUF\"");
        let version = cursor.u32()?;
        ensure!(version == 3, "GGUF version {version}, only 3 is known");
        let tensor_count = cursor.count()?;
        let pair_count = cursor.count()?;

        let mut metadata = HashMap::new();
        for _ in 0..pair_count {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, 0).with_context(|| format!("metadata {key:?}"))?;
            metadata.insert(key, value);
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            let name = cursor.string()?;
            let tensor = cursor.tensor().with_context(|| format!("tensor {name:?}"))?;
            tensors.push((name, tensor));
        }

        let alignment = match metadata.get("general.alignment") {
            Some(Value::Int(n)) if *n > 0 => *n as usize,
            Some(other) => bail!("general.alignment is {other:?}"),
            None => ALIGNMENT_DEFAULT,
        };
        let data = cursor.at.next_multiple_of(alignment);
        for (name, tensor) in &mut tensors {
            let size = tensor.format.bytes(&tensor.shape).with_context(|| name.clone())?;
            tensor.start = tensor.start.checked_add(data).context("a tensor offset overflows")?;
            let end = tensor.start.checked_add(size).context("a tensor size overflows")?;
            let all = bytes.len();
            ensure!(end <= all, "tensor {name:?} ends at byte {end}, the file has {all}");
        }
        Ok(Gguf { bytes, metadata, tensors })
    }

    /// Every tensor, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor's elements in f32, in row-major order.
    pub fn elements(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let size = tensor.format.bytes(&tensor.shape)?;
        tensor.format.decode(&self.bytes[tensor.start..tensor.start + size])
    }

    /// An integer of the metadata.
    pub fn int(&self, key: &str) -> Result<u64> {
        match self.get(key)? {
            Value::Int(n) if *n >= 0 => Ok(*n as u64),
            other => bail!("metadata {key:?} is {other:?}, not a count"),
        }
    }

    /// A single-precision number of the metadata.
    pub fn f32(&self, key: &str) -> Result<f32> {
        match self.get(key)? {
            Value::F32(x) => Ok(*x),
            other => bail!("metadata {key:?} is {other:?}, not an f32"),
        }
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.get(key)? {
            Value::Text(text) => Ok(text),
            other => bail!("metadata {key:?} is {other:?}, not text"),
        }
    }

    /// An array of integers of the metadata.
    pub fn ints(&self, key: &str) -> Result<Vec<i64>> {
        self.array(key, |value| if let Value::Int(n) = value { Some(*n) } else { None })
    }

    /// An array of texts of the metadata.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        self.array(key, |value| if let Value::Text(text) = value { Some(&text[..]) } else { None })
    }

    fn get(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).with_context(|| format!("no metadata {key:?}"))
    }

    fn array<'s, T>(&'s self, key: &str, item: impl Fn(&'s Value) -> Option<T>) -> Result<Vec<T>> {
        let Value::Array(values) = self.get(key)? else { bail!("metadata {key:?} is no array") };
        let items: Option<Vec<T>> = values.iter().map(item).collect();
        items.with_context(|| format!("metadata {key:?} is an array of another type"))
    }
}

/// A place in the bytes; every read checks that they are there.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        ensure!(count <= left.len(), "truncated: {count} bytes wanted at byte {}", self.at);
        self.at += count;
        Ok(&left[..count])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things that follow. Each takes a byte at least, which bounds it.
    fn count(&mut self) -> Result<usize> {
        let count = self.u64()?;
        let left = (self.bytes.len() - self.at) as u64;
        ensure!(count <= left, "truncated: {count} items announced, {left} bytes left");
        Ok(count as usize)
    }

    fn string(&mut self) -> Result<String> {
        let count = self.count()?;
        let at = self.at;
        let text = std::str::from_utf8(self.take(count)?);
        Ok(text.with_context(|| format!("text at byte {at}"))?.to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Int(i64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Int(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Int(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Int(i64::from(self.u32()?)),
            5 => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::Text(self.string()?),
            9 => {
                ensure!(depth < NESTING_MAX, "arrays nest deeper than {NESTING_MAX}");
                let kind = self.u32()?;
                let count = self.count()?;
                Value::Array(
                    (0..count).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?,
                )
            }
            10 => Value::Int(i64::try_from(self.u64()?).context("an integer over 63 bits")?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => bail!("unknown value type {other}"),
        })
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let dims = self.u32()?;
        ensure!((1..=4).contains(&dims), "{dims} dimensions, 1 to 4 are known");
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(usize::try_from(self.u64()?)?);
        }
        shape.reverse();
        let format = Format::from_ggml_type(self.u32()?)?;
        let start = usize::try_from(self.u64()?)?;
        Ok(Tensor { format, shape, start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pairs and one F32 tensor of shape [2, 3].
    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        string(&mut out, "a.count");
        out.extend(4u32.to_le_bytes());
        out.extend(7u32.to_le_bytes());
        string(&mut out, "a.words");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        string(&mut out, "Ġt");
        string(&mut out, "");
        string(&mut out, "w");
        out.extend(2u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
        out
    }

    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    #[test]
    fn reads_metadata_and_tensors() {
        let bytes = sample();
        let file = Gguf::parse(&bytes).unwrap();
        assert_eq!(file.int("a.count").unwrap(), 7);
        assert_eq!(file.texts("a.words").unwrap(), ["Ġt", ""]);
        let (name, tensor) = file.tensors().next().unwrap();
        assert_eq!((name, &tensor.shape[..]), ("w", &[2, 3][..]));
        assert_eq!(file.elements(tensor).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn absent_and_mistyped_metadata_is_named() {
        let bytes = sample();
        let file = Gguf::parse(&bytes).unwrap();
        assert!(file.int("b").unwrap_err().to_string().contains("\"b\""));
        assert!(file.text("a.count").unwrap_err().to_string().contains("a.count"));
        assert!(file.ints("a.words").unwrap_err().to_string().contains("another type"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(Gguf::parse(&bytes[..end]).is_err(), "cut at {end} was accepted");
        }
    }

    #[test]
    fn huge_counts_are_refused_before_allocating() {
        let mut bytes = sample();
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Gguf::parse(&bytes).unwrap_err().to_string().contains("announced"));
    }
}
