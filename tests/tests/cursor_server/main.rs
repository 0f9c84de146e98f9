//! The backup-cursor server, by way of the official driver.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

mod access;
mod chain;
mod client;
mod cursor;
mod faults;
