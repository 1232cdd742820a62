//! The end-to-end harness: starts the built broker as a user would, and drives it with real clients.
