# cmake --install, and find_package(thinwire) or pkg-config afterwards.
include(CMakePackageConfigHelpers)
set(_package "${CMAKE_INSTALL_LIBDIR}/cmake/thinwire")
set(_headers "${CMAKE_INSTALL_INCLUDEDIR}/thinwire")

set(THINWIRE_BUILT "")  # the optional parts
foreach(_part ${THINWIRE_PARTS})
  get_property(_libraries GLOBAL PROPERTY THINWIRE_LIBRARIES_${_part})
  if(_libraries)
    list(APPEND THINWIRE_BUILT ${_part})
    install(TARGETS ${_libraries} EXPORT thinwire-${_part} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    install(EXPORT thinwire-${_part} NAMESPACE thinwire:: DESTINATION ${_package})
  endif()
endforeach()
list(REMOVE_ITEM THINWIRE_BUILT core)
foreach(_layer runtime collectives optimizers thinwire)
  install(DIRECTORY ${_layer} DESTINATION ${_headers} FILES_MATCHING PATTERN "*.h")
endforeach()
install(FILES launch/admission.h launch/environment.h launch/exit.h launch/job.h launch/launch.h
        DESTINATION ${_headers}/launch)

configure_package_config_file(cmake/thinwireConfig.cmake.in thinwireConfig.cmake
                              INSTALL_DESTINATION ${_package})
write_basic_package_version_file(thinwireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/thinwireConfig.cmake"
              "${PROJECT_BINARY_DIR}/thinwireConfigVersion.cmake"
              cmake/Libtorch.cmake cmake/Nccl.cmake
        DESTINATION ${_package})

# pkg-config: `thinwire`, and `thinwire-mpi` with MPI in it, each with all that a program needs. The
# order of the libraries is that of a linker which reads each once.
# thinwire_pkg_config(name WHAT what FLAGS compile flags... LIBRARIES libraries... LINK link flags...)
function(thinwire_pkg_config name)
  cmake_parse_arguments(arg "" "WHAT" "FLAGS;LIBRARIES;LINK" ${ARGN})
  string(REGEX REPLACE "[^/]+" ".." UP "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
  set(FLAGS ${arg_FLAGS})
  list(TRANSFORM arg_LIBRARIES PREPEND "-lthinwire_")
  set(LIBRARIES ${arg_LIBRARIES} "\${torch}/lib/libtorch_cpu.so" "\${torch}/lib/libc10.so"
      ${THINWIRE_TORCH_LINK_FLAGS} ${arg_LINK} -lxxhash -lsodium -lhwy -lz -pthread)
  string(REPLACE "${THINWIRE_TORCH}" "\${torch}" LIBRARIES "${LIBRARIES}")
  set(TORCH "${THINWIRE_TORCH}")
  foreach(_list FLAGS LIBRARIES TORCH)  # a backslash keeps what has a space together
    string(REPLACE " " "\\ " ${_list} "${${_list}}")
    list(JOIN ${_list} " " ${_list})
  endforeach()
  configure_file(cmake/thinwire.pc.in ${name}.pc @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

set(_core launch_no_mpi sockets runtime optimizers net collectives base)
thinwire_pkg_config(thinwire WHAT "ranks as threads or joined by TCP" LIBRARIES attach launch ${_core})
if(THINWIRE_HAVE_MPI)
  set(_mpi_flags -DTHINWIRE_WITH_MPI -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX)
  foreach(_folder ${MPI_CXX_INCLUDE_DIRS})
    list(APPEND _mpi_flags -isystem "${_folder}")
  endforeach()
  thinwire_pkg_config(thinwire-mpi WHAT "ranks as threads or joined by MPI or TCP"
    FLAGS ${_mpi_flags} LIBRARIES attach launch launch_mpi mpi ${_core} LINK ${MPI_CXX_LIBRARIES})
endif()
