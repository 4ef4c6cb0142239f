"""The process and its machine: metrics, logs, CPUs and memory, tuning."""
