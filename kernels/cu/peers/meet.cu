// Has all ranks come this far before any goes on.

#include "meet.cuh"

using namespace minisgl;

KERNEL minisgl_meet(const __grid_constant__ minisgl_meet_args a) {
  let_next_start();
  wait_for_inputs();
  Meeting meeting(a.peers);
  meeting.meet();
  meeting.leave();
}
