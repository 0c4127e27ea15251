//! The KV cache's pages as attention takes them: one of three element types.
//!
//! Owns: the element types and their sizes. Must never: convert, or know how pages are laid out.

use cudarc::driver::CudaStream;
use half::{bf16, f16};

use crate::abi::Address;
use crate::array::DeviceArray;
use crate::{Array, ArrayMut};

/// Element of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// e4m3 of scale 1; what is written is clipped to -448..=448.
    Fp8,
}

impl KvType {
    /// Of one element, in bytes.
    pub fn bytes(self) -> usize {
        match self {
            KvType::Bf16 | KvType::Fp16 => 2,
            KvType::Fp8 => 1,
        }
    }
}

/// Pages that an op reads.
pub enum KvArray<'a> {
    /// [`KvType::Bf16`].
    Bf16(Array<'a, bf16>),
    /// [`KvType::Fp16`].
    Fp16(Array<'a, f16>),
    /// [`KvType::Fp8`], one byte an element.
    Fp8(Array<'a, u8>),
}

/// Pages that an op writes.
pub enum KvArrayMut<'a> {
    /// [`KvType::Bf16`].
    Bf16(ArrayMut<'a, bf16>),
    /// [`KvType::Fp16`].
    Fp16(ArrayMut<'a, f16>),
    /// [`KvType::Fp8`], one byte an element.
    Fp8(ArrayMut<'a, u8>),
}

macro_rules! kv_array {
    ($array:ident, $of:ident) => {
        impl $array<'_> {
            /// What the pages are made of.
            pub fn kv_type(&self) -> KvType {
                match self {
                    $array::Bf16(_) => KvType::Bf16,
                    $array::Fp16(_) => KvType::Fp16,
                    $array::Fp8(_) => KvType::Fp8,
                }
            }
        }

        impl<'a> From<$of<'a, bf16>> for $array<'a> {
            fn from(array: $of<'a, bf16>) -> Self {
                $array::Bf16(array)
            }
        }

        impl<'a> From<$of<'a, f16>> for $array<'a> {
            fn from(array: $of<'a, f16>) -> Self {
                $array::Fp16(array)
            }
        }

        impl<'a> From<$of<'a, u8>> for $array<'a> {
            fn from(array: $of<'a, u8>) -> Self {
                $array::Fp8(array)
            }
        }

        impl DeviceArray for $array<'_> {
            /// Pages are read in vectors, so this is never all that is asked of them.
            const ELEMENT_ALIGNMENT: u64 = 2;

            fn address(&self) -> Address {
                match self {
                    $array::Bf16(array) => array.address(),
                    $array::Fp16(array) => array.address(),
                    $array::Fp8(array) => array.address(),
                }
            }

            fn len(&self) -> usize {
                match self {
                    $array::Bf16(array) => array.len(),
                    $array::Fp16(array) => array.len(),
                    $array::Fp8(array) => array.len(),
                }
            }

            fn stream(&self) -> &CudaStream {
                match self {
                    $array::Bf16(array) => array.stream(),
                    $array::Fp16(array) => array.stream(),
                    $array::Fp8(array) => array.stream(),
                }
            }
        }
    };
}

kv_array!(KvArray, Array);
kv_array!(KvArrayMut, ArrayMut);
