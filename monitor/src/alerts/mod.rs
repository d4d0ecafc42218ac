//! Findings become alerts with a cursor.
