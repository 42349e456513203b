"""Prints the environment for Ray and Serve: `eval "$(python -m mask_ray.ingress)"`."""

from mask_ray.serving.ingress import main

if __name__ == "__main__":
    main()
