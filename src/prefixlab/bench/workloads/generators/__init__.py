"""Made-up workloads: who shares what with whom, decided by settings and a seed."""
