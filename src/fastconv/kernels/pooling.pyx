# Max and average pooling over channels-last images.
