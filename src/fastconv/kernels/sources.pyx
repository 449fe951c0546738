# Every kernel source, in dependency order; each instruction-set wrapper includes this list.
include "common.pyx"
include "pooling.pyx"
