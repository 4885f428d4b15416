//! Faulty twins of everything outside the logic, on a seed.

pub mod disk;
