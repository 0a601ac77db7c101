"""Pure parts of adaptation methods: tensors in, tensors out."""
