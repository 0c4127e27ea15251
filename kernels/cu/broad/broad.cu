// Products of many rows of e4m3, by how much of a weight and how many tokens a block has: see broad.cuh.
#include "broad.cuh"

#define BROAD(WIDE, TEAMS)                                                                   \
  KERNEL __launch_bounds__(minisgl::BROAD_THREADS, 1)                                        \
      minisgl_broad_##WIDE##_##TEAMS(const __grid_constant__ minisgl_broad_args a) {        \
    minisgl::broad<WIDE, TEAMS>(a);                                                          \
  }

BROAD(64, 1)
BROAD(96, 1)
BROAD(128, 1)
BROAD(192, 1)
BROAD(64, 2)
BROAD(96, 2)
BROAD(128, 2)
BROAD(192, 2)
