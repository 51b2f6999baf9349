"""The stages after training: generated pairs, standard augmentation, image quality, and the U-Net that is the judge."""
