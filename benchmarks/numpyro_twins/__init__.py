"""The workloads as NumPyro programs: each module's ``program`` makes model and guide."""
