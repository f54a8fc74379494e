"""VPTQ: vectors along the outputs from learned centroids, with residuals, outlier columns and a column permutation."""
