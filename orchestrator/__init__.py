"""Where and when things run; the only package that imports Ray and MLflow."""
