# libtorch from a torch wheel, as the imported target `thinwire::torch`.
#
# Linking the libraries by path with an rpath is one code path for CPU and CUDA wheels and needs no
# nvcc at configure time, unlike find_package(Torch). Only the CPU libraries are linked: they load
# without a driver and start in a fraction of the time.
#
#   THINWIRE_TORCH   the folder of the Python package `torch` (it holds include/ and lib/)

if(NOT TARGET thinwire::torch)
  if(NOT THINWIRE_TORCH)
    file(GLOB _candidates "${CMAKE_BINARY_DIR}/venv/lib/python3*/site-packages/torch"
         "${CMAKE_SOURCE_DIR}/build/venv/lib/python3*/site-packages/torch")
    list(LENGTH _candidates _count)
    if(_count GREATER 0)
      list(GET _candidates 0 THINWIRE_TORCH)
    endif()
  endif()
  if(NOT EXISTS "${THINWIRE_TORCH}/lib/libtorch_cpu.so")
    message(FATAL_ERROR "libtorch not found in '${THINWIRE_TORCH}'. Run ./setup.sh, or pass "
                        "-DTHINWIRE_TORCH=<site-packages>/torch of a torch 2.11 wheel.")
  endif()
  get_filename_component(THINWIRE_TORCH "${THINWIRE_TORCH}" REALPATH)
  set(THINWIRE_TORCH "${THINWIRE_TORCH}" CACHE PATH "folder of the Python package torch" FORCE)

  # The CUDA wheel's CPU library needs libcudart and libcupti: from the toolkit, or from the wheels
  # beside torch (then torch's own rpath finds them).
  set(_rpath "${THINWIRE_TORCH}/lib")
  foreach(_folder /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64)
    if(EXISTS "${_folder}")
      list(APPEND _rpath "${_folder}")
    endif()
  endforeach()
  file(GLOB _wheels "${THINWIRE_TORCH}/../nvidia/cu13/lib" "${THINWIRE_TORCH}/../nvidia/*/lib")
  list(APPEND _rpath ${_wheels})
  list(REMOVE_DUPLICATES _rpath)

  add_library(thinwire::torch INTERFACE IMPORTED)
  set_target_properties(thinwire::torch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES
      "${THINWIRE_TORCH}/include;${THINWIRE_TORCH}/include/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
      "${THINWIRE_TORCH}/include;${THINWIRE_TORCH}/include/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES
      "${THINWIRE_TORCH}/lib/libtorch_cpu.so;${THINWIRE_TORCH}/lib/libc10.so")
  # RPATH rather than RUNPATH: it also serves what libtorch itself loads.
  set(_flags "-Wl,--disable-new-dtags")
  foreach(_folder IN LISTS _rpath)
    list(APPEND _flags "-Wl,-rpath,${_folder}" "-Wl,-rpath-link,${_folder}")
  endforeach()
  set_property(TARGET thinwire::torch PROPERTY INTERFACE_LINK_OPTIONS "${_flags}")
endif()
