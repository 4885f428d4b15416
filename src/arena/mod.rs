//! Memory taken at the start: slots with generations, and a timing wheel over their keys.

mod slab;
mod wheel;

pub use slab::{Key, Slab};
pub use wheel::Wheel;
