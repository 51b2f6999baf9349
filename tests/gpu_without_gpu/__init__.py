"""Our GPU code, run on a CUDA device that is not there: what errors, memory, graphs and kernels a GPU would see.

``fake_cuda`` is the device: tensors on it have a shape, a type and a place, and no numbers.
``recorder`` counts what a program does on it: bytes that live, and waits for the device.
``trace`` runs the product's own training loop there and prints one line of JSON.
``trained`` draws pairs there and bounds likelihoods.
"""
