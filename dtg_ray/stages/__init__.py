"""One module per verb: the only place where Ray and Dask appear."""
