"""Ask and time: workloads, clients, records, metrics and reports, for any server."""
