//! Every dialect, from text to parts: recorded outputs, garbage, limits, and which checkpoint has which.

#![cfg(test)]

mod cases;
mod choice;
mod corpus;
mod costs;
mod docs;
mod garbage;
mod limits;
mod outputs;
mod record;
mod support;
