"""The gate's shell: bytes to models (wire), HTTP (app), and the interpreter of the pipeline's effects (driver)."""
