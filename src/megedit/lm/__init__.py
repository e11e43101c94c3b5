"""The frozen language model: found and loaded, asked through a template, split in two where the neuron goes."""
