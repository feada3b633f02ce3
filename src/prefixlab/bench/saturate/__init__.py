"""The largest load that still meets its objectives, in few probes."""
