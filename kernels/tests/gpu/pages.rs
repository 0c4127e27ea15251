//! KV pages of every element type, on the CPU and on the GPU.

use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use minisgl_kernels::attention::{KvArray, KvArrayMut, KvType};
use minisgl_kernels::{Array, ArrayMut};

use crate::support::Gpu;

pub const KV_TYPES: [KvType; 3] = [KvType::Bf16, KvType::Fp16, KvType::Fp8];

/// An array of one of the types.
pub enum Pages {
    Bf16(CudaSlice<bf16>),
    Fp16(CudaSlice<f16>),
    Fp8(CudaSlice<u8>),
}

impl Pages {
    /// These values, which the type can hold.
    pub fn upload(gpu: &Gpu, kv: KvType, values: &[f32]) -> Pages {
        let each = values.iter();
        match kv {
            KvType::Bf16 => {
                Pages::Bf16(gpu.upload(&each.map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()))
            }
            KvType::Fp16 => {
                Pages::Fp16(gpu.upload(&each.map(|&x| f16::from_f32(x)).collect::<Vec<_>>()))
            }
            KvType::Fp8 => Pages::Fp8(gpu.upload(&each.map(|&x| to_e4m3(x)).collect::<Vec<_>>())),
        }
    }

    /// Normal values, and `slack` zeros behind them.
    pub fn normal(gpu: &mut Gpu, kv: KvType, len: usize, slack: usize) -> (Vec<f32>, Pages) {
        let mut values: Vec<f32> = (0..len).map(|_| round(kv, gpu.random.normal())).collect();
        values.resize(len + slack, 0.0);
        let pages = Pages::upload(gpu, kv, &values);
        (values, pages)
    }

    /// A bit pattern that no op writes: not a number.
    pub fn poisoned(gpu: &Gpu, kv: KvType, len: usize) -> Pages {
        match kv {
            KvType::Bf16 => Pages::Bf16(gpu.poisoned(len)),
            KvType::Fp16 => Pages::Fp16(gpu.upload(&vec![f16::from_bits(0x7e55); len])),
            KvType::Fp8 => Pages::Fp8(gpu.upload(&vec![0x7f_u8; len])),
        }
    }

    pub fn array(&self) -> KvArray<'_> {
        match self {
            Pages::Bf16(slice) => Array::from(slice).into(),
            Pages::Fp16(slice) => Array::from(slice).into(),
            Pages::Fp8(slice) => Array::from(slice).into(),
        }
    }

    pub fn array_mut(&mut self) -> KvArrayMut<'_> {
        match self {
            Pages::Bf16(slice) => ArrayMut::from(slice).into(),
            Pages::Fp16(slice) => ArrayMut::from(slice).into(),
            Pages::Fp8(slice) => ArrayMut::from(slice).into(),
        }
    }

    /// Copies values of the same type and number into this array.
    pub fn overwrite(&mut self, gpu: &Gpu, values: &Pages) {
        let stream = gpu.device.stream();
        match (self, values) {
            (Pages::Bf16(to), Pages::Bf16(from)) => stream.memcpy_dtod(from, to).unwrap(),
            (Pages::Fp16(to), Pages::Fp16(from)) => stream.memcpy_dtod(from, to).unwrap(),
            (Pages::Fp8(to), Pages::Fp8(from)) => stream.memcpy_dtod(from, to).unwrap(),
            _ => panic!("arrays of two types"),
        }
    }

    /// The values; poison is NaN.
    pub fn download(&self, gpu: &Gpu) -> Vec<f32> {
        match self {
            Pages::Bf16(slice) => gpu.download(slice).into_iter().map(bf16::to_f32).collect(),
            Pages::Fp16(slice) => gpu.download(slice).into_iter().map(f16::to_f32).collect(),
            Pages::Fp8(slice) => gpu.download(slice).into_iter().map(from_e4m3).collect(),
        }
    }
}

/// The nearest value that the type can hold.
pub fn round(kv: KvType, x: f32) -> f32 {
    match kv {
        KvType::Bf16 => bf16::from_f32(x).to_f32(),
        KvType::Fp16 => f16::from_f32(x.clamp(-65_504.0, 65_504.0)).to_f32(),
        KvType::Fp8 => from_e4m3(to_e4m3(x)),
    }
}

/// Four bits of exponent with a bias of 7, three of mantissa, no infinities.
fn from_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(i32::from(exponent) - 7),
    };
    if byte >> 7 == 1 { -magnitude } else { magnitude }
}

/// To nearest, ties to even, clipped: by looking through the values in their order.
fn to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = u8::from(x.is_sign_negative()) << 7;
    let (mut low, mut high) = (0_u8, 0x7e_u8);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if from_e4m3(middle) <= x.abs() { low = middle } else { high = middle }
    }
    let (below, above) = (x.abs() - from_e4m3(low), from_e4m3(high) - x.abs());
    sign | if below < above || (below == above && low % 2 == 0) { low } else { high }
}
